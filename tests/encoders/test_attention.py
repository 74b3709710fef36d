"""Implementations and directions of attention, and compilation. Run: pytest tests/encoders/test_attention.py"""

import json

import pytest
import torch
from tests.encoders.test_lora import FAMILIES
from tests.encoders.test_st_folder import OWN
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tests.random_models import save_random_model
from transformers import MambaConfig, MambaModel

from dream.encoders.attention import choose_direction
from dream.encoders.hf import HFEncoder
from dream.utils.errors import ConfigError
from dream.utils.model_probe import sees_later_tokens

TEXTS = ["the river stone", "water runs over the stone " * 4, "a"]


@pytest.fixture
def made(tmp_path):
    """Makes an encoder with a tiny random model of a family."""

    def make(kind: str, **changes) -> HFEncoder:
        tokenizer = KINDS["byte_level"]()
        torch.manual_seed(0)
        folder = save_random_model(FAMILIES[kind](len(tokenizer)), tokenizer, tmp_path / kind)
        return HFEncoder(folder, **(OWN | {"pooling": "mean", "max_tokens": 20} | changes)).eval()

    return make


@pytest.mark.parametrize("kind", ["bert", "qwen3", "llama"])
def test_implementations_give_the_same_vectors(kind, made):
    own = made(kind).embed_queries(TEXTS)
    for attention in ("sdpa", "eager"):
        encoder = made(kind, attention=attention)
        assert encoder.model.config._attn_implementation == attention
        torch.testing.assert_close(encoder.embed_queries(TEXTS), own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_decoder_reads_the_whole_text_also_after_saving(kind, made, tmp_path):
    causal, both = made(kind), made(kind, bidirectional=True)
    assert not sees_later_tokens(causal.model)
    assert sees_later_tokens(both.model)
    vectors = both.embed_queries(TEXTS)
    assert not torch.allclose(vectors, causal.embed_queries(TEXTS), atol=1e-4)
    alone = torch.cat([both.embed_queries([text]) for text in TEXTS])  # without padding, attention has no mask
    torch.testing.assert_close(alone, vectors, rtol=0, atol=1e-5)
    (tmp_path / "saved").mkdir()
    both.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["is_causal"] is False
    opened = HFEncoder.open(tmp_path / "saved").eval()
    torch.testing.assert_close(opened.embed_queries(TEXTS), vectors, rtol=0, atol=1e-6)


def test_impossible_choices_are_refused(made):
    with pytest.raises(ConfigError, match="encoder.attention=fast: choose auto, sdpa, flash_attention_2, eager"):
        made("bert", attention="fast")
    recurrent = MambaModel(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ConfigError, match="encoder.bidirectional=true: MambaModel reads in one direction only"):
        choose_direction(recurrent, True)


def test_flash_attention_needs_a_gpu_and_its_package(made, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="encoder.attention=flash_attention_2: needs a CUDA GPU; choose sdpa"):
        made("bert", attention="flash_attention_2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("dream.encoders.attention.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package flash_attn: pip install flash-attn"):
        made("bert", attention="flash_attention_2")


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_vectors_and_names(made, tmp_path):
    own, compiled = made("bert"), made("bert", compile=True)
    torch.testing.assert_close(compiled.embed_queries(TEXTS), own.embed_queries(TEXTS), rtol=0, atol=1e-5)
    assert compiled.model._compiled_call_impl is not None
    assert list(compiled.state_dict()) == list(own.state_dict())
    assert compiled.fingerprint() == own.fingerprint()
    compiled.train()
    compiled.embed_batch(TEXTS, "query", torch.device("cpu")).sum().backward()
    (tmp_path / "saved").mkdir()
    compiled.save(tmp_path / "saved")
    torch.testing.assert_close(
        HFEncoder.open(tmp_path / "saved").eval().embed_queries(TEXTS), own.embed_queries(TEXTS), rtol=0, atol=1e-5
    )
