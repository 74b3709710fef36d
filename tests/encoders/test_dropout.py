"""Dropout of the encoder in training. Run: pytest tests/encoders/test_dropout.py"""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5EncoderModel,
)

from dream.encoders.dropout import choose_dropout
from dream.utils.errors import ConfigError

SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, attention_dropout=0.1)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2, attention_dropout=0.1, mlp_dropout=0.1, embedding_dropout=0.1)),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)),
}  # fmt: skip


def differ(model: torch.nn.Module) -> bool:
    """Whether two forwards in training mode differ."""
    model.train()
    ids = torch.arange(3, 15)[None]
    first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("name", MODELS)
def test_zero_turns_off_all_dropout(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    choose_dropout(model, None)
    assert differ(model)
    choose_dropout(model, 0.0)
    assert not differ(model)
    choose_dropout(model, 0.5)
    assert differ(model)


def test_the_probability_is_that_of_all_dropout():
    """Of 4,000 values of the embeddings, about a quarter is 0, and the others are multiplied by 4/3."""
    model = BertModel(BertConfig(**SMALL)).train()
    choose_dropout(model, 0.25)
    torch.manual_seed(0)
    dropped = model.embeddings.dropout(torch.ones(4000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert dropped.max().item() == pytest.approx(4 / 3)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_impossible_values_are_refused(value):
    with pytest.raises(ConfigError, match=rf"^encoder\.dropout={value}: null, or at least 0 and below 1"):
        choose_dropout(BertModel(BertConfig(**SMALL)), value)
