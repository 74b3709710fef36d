"""How many tokens a model reads, for all schemes of positions. Run: pytest tests/utils/test_model_probe.py"""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerModel,
    MPNetConfig,
    MPNetModel,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    XLNetConfig,
    XLNetModel,
)

from dream.utils.model_probe import probe

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
WIDE = SMALL | {"intermediate_size": 16}
TOKEN = 29
# Tokens that each model reads; its table has 20 positions (Longformer's 26, because it pads to multiples of 8).
LEARNED = {
    "bert": (20, lambda: BertModel(BertConfig(max_position_embeddings=20, **WIDE))),
    "gpt2": (20, lambda: GPT2LMHeadModel(GPT2Config(n_positions=20, n_embd=16, n_layer=1, n_head=2, vocab_size=30))),
    "roberta": (18, lambda: RobertaModel(RobertaConfig(max_position_embeddings=20, pad_token_id=1, **WIDE))),
    "pad 4": (15, lambda: RobertaModel(RobertaConfig(max_position_embeddings=20, pad_token_id=4, **WIDE))),
    "mpnet": (18, lambda: MPNetModel(MPNetConfig(max_position_embeddings=20, pad_token_id=1, **WIDE))),
    "longformer": (24, lambda: LongformerModel(
        LongformerConfig(max_position_embeddings=26, pad_token_id=1, attention_window=8, **WIDE))),
    "opt": (20, lambda: OPTForCausalLM(
        OPTConfig(max_position_embeddings=20, ffn_dim=16, word_embed_proj_dim=16, **SMALL))),
}  # fmt: skip
UNLIMITED = {
    "t5": lambda: T5EncoderModel(T5Config(d_model=16, d_kv=8, num_heads=2, num_layers=1, d_ff=16, vocab_size=30)),
    "alibi": lambda: BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=30)),
    "xlnet": lambda: XLNetModel(XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=30)),
}


def read(model, tokens):
    return model(input_ids=torch.full((1, tokens), TOKEN), attention_mask=torch.ones(1, tokens, dtype=torch.long))


@pytest.mark.parametrize("family", LEARNED)
def test_the_limit_of_a_table_is_the_longest_text_that_does_not_fail(family):
    tokens, make = LEARNED[family]
    model = make().eval()
    assert probe(model)[0] == tokens
    read(model, tokens)
    with pytest.raises((IndexError, RuntimeError)):
        read(model, tokens + 1)


@pytest.mark.parametrize("family", UNLIMITED)
def test_relative_positions_have_no_limit(family):
    model = UNLIMITED[family]().eval()
    assert probe(model)[0] is None
    read(model, 700)


@pytest.mark.parametrize(("length", "limit"), [(20, 20), (-1, None)])
def test_rotary_positions_have_the_limit_of_the_config(length, limit):
    config = LlamaConfig(**WIDE)
    model = LlamaForCausalLM(config).eval()
    config.max_position_embeddings = length
    assert probe(model)[0] == limit


def test_the_mode_stays_and_the_output_is_returned():
    model = BertModel(BertConfig(**WIDE)).train()
    _, output = probe(model)
    assert model.training
    assert output.last_hidden_state.shape[-1] == 16
    assert not output.last_hidden_state.requires_grad
