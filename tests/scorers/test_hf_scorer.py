"""Models that cannot be loaded, as encoder and as scorer: one line each. Run: pytest tests/scorers/test_hf_scorer.py"""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.encoders.tokenizers_of_all_kinds import byte_level, word_piece
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dream.encoders.hf import HFEncoder
from dream.scorers.hf import HFScorer
from dream.utils import errors
from dream.utils.errors import ConfigError

SCORING = {"template": ["{bos}", "{passage}", "\n", "{context}"], "max_passage_tokens": 16,
           "tokens_per_forward": 512, "dtype": "float32", "compile": False}  # fmt: skip
ENCODER = {"pooling": "auto", "query_prefix": None, "passage_prefix": None, "max_tokens": None, "dtype": "float32",
           "dropout": None, "gradient_checkpointing": False, "chunk": None, "trust_remote_code": False,
           "attention": "auto", "bidirectional": None, "compile": False,
       "lora": {"rank": 0, "alpha": 32, "dropout": 0.0, "targets": None}}  # fmt: skip
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n"
GPT2 = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def scorer_of(folder, **scoring) -> HFScorer:
    return HFScorer(None, str(folder), SCORING | scoring, trust_remote_code=False, cache_megabytes=0)


def encoder_of(folder) -> HFEncoder:
    return HFEncoder(str(folder), **ENCODER)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = byte_level()
    tokenizer.save_pretrained(folder)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **GPT2)).save_pretrained(folder)
    return folder


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def cut(file):
    file.write_bytes(file.read_bytes()[:-500])


def add_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["onemore", "another"])
    tokenizer.save_pretrained(folder)


def remove(folder, pattern):
    for file in folder.glob(pattern):
        file.unlink()


def only_shards(folder):
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def broken_pickle(folder):
    torch.save({"transformer.wte.weight": torch.zeros(400, 16)}, folder / "pytorch_model.bin")
    cut(folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def old_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    (folder / "model.safetensors").unlink()


def other_weights(folder):
    BertModel(BertConfig(vocab_size=400, **BERT)).save_pretrained(folder / "bert")
    shutil.move(folder / "bert" / "model.safetensors", folder / "model.safetensors")


def adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


BROKEN = {
    "weights that are an LFS pointer": (
        lambda f: (f / "model.safetensors").write_text(POINTER), "model.safetensors is a Git LFS pointer", "git lfs"),
    "a tokenizer that is an LFS pointer": (
        lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json is a Git LFS pointer", "git lfs pull"),
    "a config that is an LFS pointer": (
        lambda f: (f / "config.json").write_text(POINTER), "config.json is a Git LFS pointer", "git lfs pull"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "model.safetensors is damaged", "download"),
    "cut pickled weights": (broken_pickle, "pytorch_model.bin is damaged", "download"),
    "quantised weights": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}), "quantised .gptq.", "choose"),
    "more tokens than rows": (add_tokens, r"tokenizer has \d+ entries, but .* for \d+", "resize_token_embeddings"),
    "no tokenizer": (lambda f: remove(f, "tokenizer*"), "has no tokenizer files", "tokenizer.json"),
    "no weights": (lambda f: remove(f, "*.safetensors"), "holds no weights", "download"),
    "no config": (lambda f: remove(f, "config.json"), "has no config.json", "save_pretrained"),
    "a missing shard": (only_shards, "model-00001-of-00002.safetensors is missing", "download"),
    "an adapter": (adapter, "is an adapter", "merge it"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded", "complete"),
    "an unknown architecture": (lambda f: edit_config(f, model_type="strange"), "cannot be loaded", "complete"),
    "a nameless folder": (lambda f: shutil.rmtree(f), "neither a folder nor", "check the path"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize(("make", "key"), [(encoder_of, "encoder.name"), (scorer_of, "scorer.name")])
def test_a_broken_folder_is_one_line_before_the_corpus_is_prepared(gpt2, tmp_path, kind, make, key):
    """Key, folder, reason and remedy, already in the constructor."""
    folder = shutil.copytree(gpt2, tmp_path / "model")
    breaks, reason, remedy = BROKEN[kind]
    breaks(folder)
    with pytest.raises(ConfigError) as error:
        make(folder)
    assert re.fullmatch(rf"{key}={re.escape(str(folder))}: .*{reason}.*; .*{remedy}.*", str(error.value))


@pytest.mark.parametrize("breaks", [other_weights, old_pickle])
def test_weights_of_another_model_are_one_line_too(gpt2, tmp_path, breaks, store):
    """They show only when they are read; a scorer reads them after the corpus is prepared."""
    folder = shutil.copytree(gpt2, tmp_path / "model")
    breaks(folder)
    with pytest.raises(ConfigError, match=rf"^encoder.name={folder}: [^\n]*; [^\n]*$"):
        encoder_of(folder)
    with pytest.raises(ConfigError, match=rf"^scorer.name={folder}: [^\n]*; [^\n]*$"):
        scorer_of(folder).load(store)


@pytest.mark.parametrize("name", ["~/nowhere", "/no/where/at/all", "owner/not-cached", "not-cached", "a b", "../x"])
def test_a_missing_model_is_neither_a_folder_nor_cached(name):
    for make, key in ((encoder_of, "encoder.name"), (scorer_of, "scorer.name")):
        with pytest.raises(ConfigError, match=rf"^{key}=.*: cannot be loaded: neither a folder nor.*; check the path"):
            make(name)


def test_a_file_is_no_folder(gpt2):
    with pytest.raises(ConfigError, match=r"scorer.name=.*is a file; give the folder"):
        scorer_of(gpt2 / "model.safetensors")


def test_a_tilde_is_the_home_folder(gpt2, monkeypatch):
    monkeypatch.setenv("HOME", str(gpt2.parent))
    assert scorer_of(f"~/{gpt2.name}").name == f"~/{gpt2.name}"


def test_a_broken_copy_of_the_weights_that_is_not_read_does_not_matter(gpt2, tmp_path):
    folder = shutil.copytree(gpt2, tmp_path / "model")
    (folder / "pytorch_model.bin").write_text(POINTER)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text(POINTER)
    scorer_of(folder)
    encoder_of(folder)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda v: BertForMaskedLM(BertConfig(vocab_size=v, **BERT)), "bert reads a text in both directions"),
        (lambda v: BertModel(BertConfig(vocab_size=v, **BERT)), "bert reads a text in both directions"),
        (lambda v: T5ForConditionalGeneration(
            T5Config(vocab_size=v, d_model=16, d_kv=8, num_heads=2, num_layers=1, d_ff=16)), "t5 is no causal"),
    ],
)  # fmt: skip
def test_a_model_that_sees_the_target_is_no_scorer(tmp_path, model, reason):
    tokenizer = word_piece()
    tokenizer.save_pretrained(tmp_path)
    model(len(tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"^scorer.name={tmp_path}: {reason}.*; choose a decoder"):
        scorer_of(tmp_path)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (lambda v, n: GPT2LMHeadModel(GPT2Config(vocab_size=v, **(GPT2 | {"n_positions": n}))), 0),
        (lambda v, n: RobertaForCausalLM(RobertaConfig(
            vocab_size=v, max_position_embeddings=n, is_decoder=True, pad_token_id=1, **BERT)), -2),
        (lambda v, n: OPTForCausalLM(OPTConfig(
            vocab_size=v, max_position_embeddings=n, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            ffn_dim=16, word_embed_proj_dim=16)), 0),
    ],
)  # fmt: skip
def test_the_scorer_knows_how_many_tokens_its_model_reads(store, tokenizer, tmp_path, model, tokens):
    """The longest sequence that it accepts is scored; one more passage token is refused."""
    tokenizer.save_pretrained(tmp_path)
    model(len(tokenizer), 64).save_pretrained(tmp_path)
    scorer = scorer_of(tmp_path)
    scorer.load(store)
    assert scorer.most_tokens == 64 + tokens
    room = scorer.most_tokens - (scorer.longest - SCORING["max_passage_tokens"])
    fits = scorer_of(tmp_path, max_passage_tokens=room)
    fits.load(store)
    assert fits.longest == 64 + tokens
    assert fits.loglik(store, torch.tensor([0, 1]), torch.tensor([[3, -1], [5, 9]])).isfinite().all()
    with pytest.raises(ConfigError, match=f"scorer.scoring.max_passage_tokens={room + 1}: .* reads {64 + tokens};"):
        scorer_of(tmp_path, max_passage_tokens=room + 1).load(store)


PEAK = """
import re, sys, threading, torch
from pathlib import Path
from transformers import AutoTokenizer
from dream.scorers.base import CausalScorer, Scoring
from dream.store.store import Store
folder, store, dtype = sys.argv[1:]
scoring = Scoring(["{passage}", "{context}"], 16, 512, dtype, False)
scorer = CausalScorer(AutoTokenizer.from_pretrained(folder), scoring, 0)
memory = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = highest = memory()
done = threading.Event()
def sample():
    global highest
    while not done.wait(0.002):
        highest = max(highest, memory())
sampler = threading.Thread(target=sample)
sampler.start()
scorer.open(folder, Store(Path(store), None))
done.set()
sampler.join()
assert scorer.packs and str(scorer.model.dtype) == "torch." + dtype
print(scorer.weights_fingerprint, highest - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of a process from /proc")
def test_the_weights_are_loaded_in_their_type(tmp_path, store, tokenizer):
    """A bfloat16 folder in bfloat16 takes about half the memory, and its weights keep their fingerprint."""
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=512, intermediate_size=4096, num_hidden_layers=12,
                         num_attention_heads=8, max_position_embeddings=128)  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = {}
    for dtype in ("bfloat16", "float32"):
        command = [sys.executable, "-c", PEAK, str(tmp_path), str(store.path), dtype]
        found[dtype] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    (fingerprint, megabytes), (other, more) = found.values()
    assert fingerprint == other
    assert int(megabytes) < 0.7 * int(more), found


def test_accelerate_places_the_layers(llama_folder, store):
    pytest.importorskip("accelerate")
    windows, candidates = torch.tensor([0, 7]), torch.tensor([[3, -1], [50, 51]])
    scorers = [HFScorer(None, str(llama_folder), SCORING, False, 0, device_map) for device_map in (None, "cpu", "auto")]
    for scorer in scorers:
        scorer.load(store)
    assert scorers[1].to("meta").device.type == "cpu", "the layers stay"
    values = [scorer.loglik(store, windows, candidates) for scorer in scorers]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_without_accelerate_the_extra_is_named(gpt2, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"scorer.device_map=auto: needs the package accelerate: .*\[accelerate\]"):
        HFScorer(None, str(gpt2), SCORING, False, 0, "auto")
