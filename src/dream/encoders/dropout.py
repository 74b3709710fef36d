"""The dropout of a transformers model in training."""

from torch import nn

from dream.utils.errors import require


def choose_dropout(model: nn.Module, dropout: float | None) -> None:
    """Set the probability of every dropout of a model: of hidden states, of attention and of embeddings.

    With dropout in attention, PyTorch has no fused attention on CPUs. So 0 is much faster there.

    Args:
        model: a transformers model. Most have `nn.Dropout` modules; some pass a number to their attention function.
        dropout: at least 0 and below 1. None: as published.

    Raises:
        ConfigError: the value is out of its range.
    """
    if dropout is None:
        return
    require(0 <= dropout < 1, "encoder.dropout", dropout, "null, or at least 0 and below 1")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        for name, value in list(vars(module).items()):
            if "dropout" in name and type(value) in (int, float):  # not bool
                setattr(module, name, dropout)
