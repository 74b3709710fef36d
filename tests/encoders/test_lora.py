"""Adapters: only they are trained and saved, a resumed run is the same. Run: pytest tests/encoders/test_lora.py"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from tests.encoders.test_st_folder import OWN
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tests.export.conftest import job_of, static  # noqa: F401
from tests.export.test_export import MODELS
from tests.random_models import save_random_model
from transformers import MistralConfig, MistralModel, Qwen2Config, Qwen2Model

from dream.encoders.hf import HFEncoder
from dream.export.formats import FORMATS
from dream.module import RetrieverModule
from dream.runs.load import open_run
from dream.utils import errors
from dream.utils.errors import ConfigError

pytest.importorskip("peft")

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": None}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
         "num_key_value_heads": 1}  # fmt: skip
FAMILIES = {
    **MODELS,
    "qwen2": lambda rows: Qwen2Model(Qwen2Config(vocab_size=rows, **SIZES)),
    "mistral": lambda rows: MistralModel(MistralConfig(vocab_size=rows, **SIZES)),
}
EXPECTED = {"bert": {"query", "value"}, "llama": {"q_proj", "v_proj"}, "qwen2": {"q_proj", "v_proj"},
            "qwen3": {"q_proj", "v_proj"}, "mistral": {"q_proj", "v_proj"}}  # fmt: skip
TEXTS = ["the river stone", "water runs over the stone " * 9, "a"]


def adapted(kind: str, tmp_path, **changes) -> HFEncoder:
    tokenizer = KINDS["byte_level"]()
    torch.manual_seed(0)
    folder = save_random_model(FAMILIES[kind](len(tokenizer)), tokenizer, tmp_path / kind)
    pooling = "mean" if kind == "bert" else "last"
    torch.manual_seed(1)
    return HFEncoder(folder, **(OWN | {"pooling": pooling, "max_tokens": 20, "lora": LORA | changes}))


def train(encoder: HFEncoder, steps: int = 2) -> HFEncoder:
    optimizer = torch.optim.AdamW([weight for weight in encoder.parameters() if weight.requires_grad], lr=0.05)
    for _ in range(steps):
        (-encoder.embed_batch(TEXTS, "query", torch.device("cpu"))[:, :3].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return encoder


@pytest.mark.parametrize("kind", FAMILIES)
def test_only_adapters_of_the_usual_layers_are_trained_and_saved(kind, tmp_path):
    encoder = adapted(kind, tmp_path)
    before = copy.deepcopy(encoder).eval().embed_queries(TEXTS)
    frozen = {name: weight.clone() for name, weight in encoder.named_parameters() if not weight.requires_grad}
    train(encoder).eval()
    assert not torch.allclose(encoder.embed_queries(TEXTS), before)
    assert frozen
    assert all(torch.equal(weight, dict(encoder.named_parameters())[name]) for name, weight in frozen.items())
    state = encoder.state_dict()
    assert state
    assert all(".lora_" in name for name in state)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in state}
    assert layers == EXPECTED.get(kind, layers)
    again = adapted(kind, tmp_path).eval()
    again.load_state_dict(state)
    assert torch.equal(again.embed_queries(TEXTS), encoder.embed_queries(TEXTS))


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_saved_it_is_merged(kind, tmp_path):
    encoder = train(adapted(kind, tmp_path)).eval()
    own = encoder.embed_queries(TEXTS)
    (tmp_path / "saved").mkdir()
    encoder.save(tmp_path / "saved")
    opened = HFEncoder.open(tmp_path / "saved").eval()
    assert not any("lora" in name for name in load_file(tmp_path / "saved/model.safetensors"))
    torch.testing.assert_close(opened.embed_queries(TEXTS), own, rtol=0, atol=1e-5)
    assert opened.fingerprint() == encoder.fingerprint()
    assert torch.equal(encoder.embed_queries(TEXTS), own), "saving changes nothing"


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_exported_the_adapter_is_kept_beside_its_base_model(kind, job_of, tmp_path):  # noqa: F811
    """The folder has no weights of the base model, and sentence-transformers gives the vectors of the run."""
    pytest.importorskip("sentence_transformers")
    encoder = train(adapted(kind, tmp_path)).eval()
    job = job_of(encoder, adapter="kept")
    (job.folder / "encoder").mkdir(parents=True)
    encoder.save(job.folder / "encoder")
    (tmp_path / "kept").mkdir()
    chosen = FORMATS["sentence_transformers"]
    chosen.write(job, tmp_path / "kept")
    assert chosen.check(job, tmp_path / "kept")["lowest_cosine"] > 0.99999
    weights = [file.name for file in (tmp_path / "kept").rglob("*.safetensors")]
    assert weights == ["adapter_model.safetensors"]
    assert json.loads((tmp_path / "kept/adapter_config.json").read_text())["base_model_name_or_path"].endswith(kind)


def test_a_run_without_adapter_cannot_keep_it(job_of, static, tmp_path):  # noqa: F811
    (tmp_path / "kept").mkdir()
    with pytest.raises(ConfigError, match="adapter=kept: a static encoder has no adapter"):
        FORMATS["sentence_transformers"].write(job_of(static, adapter="kept"), tmp_path / "kept")
    plain = adapted("bert", tmp_path, rank=0).eval()
    with pytest.raises(ConfigError, match=r"adapter=kept: this run has no adapter: encoder\.lora\.rank was 0"):
        FORMATS["sentence_transformers"].write(job_of(plain, adapter="kept"), tmp_path / "kept")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, "encoder.lora.rank=-1: 0 for no adapter"),
        ({"dropout": 1.0}, "encoder.lora.dropout=1.0: at least 0"),
        ({"alpha": 0}, "encoder.lora.alpha=0: above 0"),
        ({"targets": ["nothing"]}, r"encoder.lora.targets=\['nothing'\]: choose from .*query.*, or all-linear"),
    ],
)
def test_impossible_values_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        adapted("bert", tmp_path, **changes)


def test_without_peft_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"encoder.lora.rank=4: needs the package peft: .*\[lora\]"):
        adapted("bert", tmp_path)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_found_with_either_padding_side(side, tmp_path):
    """A batch of different lengths gives the vectors of single texts."""
    tokenizer = KINDS["byte_level"]()
    tokenizer.padding_side = side
    folder = save_random_model(FAMILIES["qwen2"](len(tokenizer)), tokenizer, tmp_path / "model")
    encoder = HFEncoder(folder, **(OWN | {"pooling": "last", "max_tokens": 20})).eval()
    single = torch.cat([encoder.embed_queries([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.embed_queries(TEXTS), single, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_is_the_same(config, tmp_path, monkeypatch):
    """Six steps at once, and four steps that are resumed; then the run is opened with its index."""
    from dream.commands.train import train as train_run

    tokenizer = KINDS["byte_level"]()
    torch.manual_seed(0)
    folder = save_random_model(FAMILIES["qwen2"](len(tokenizer)), tokenizer, tmp_path / "model")
    own = ["encoder=hf", f"encoder.name={folder}", "encoder.pooling=last", "encoder.lora.rank=4",
           "encoder.lora.dropout=0.1", "objective=info_nce", "callbacks.candidate_panels=null"]  # fmt: skip
    train_run(config("whole", *own))
    step = RetrieverModule.training_step

    def stop_at_4(module, *batch):
        if module.global_step == 4:
            raise RuntimeError("stopped")
        return step(module, *batch)

    monkeypatch.setattr(RetrieverModule, "training_step", stop_at_4)
    with pytest.raises(RuntimeError, match="stopped"):
        train_run(config("part", *own))
    monkeypatch.setattr(RetrieverModule, "training_step", step)
    checkpoint = tmp_path / "logs/part/checkpoints/last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(".lora_" in name for name in state)
    train_run(config("part", *own, f"ckpt={checkpoint}"))
    weights = [
        load_file(found / "encoder/model.safetensors") for found in (tmp_path / "logs/whole", tmp_path / "logs/part_2")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert open_run(tmp_path / "logs/whole").encoder.fingerprint()
