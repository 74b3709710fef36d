"""Turns hidden states into one vector: pooling over tokens, then the layers of a sentence-transformers model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Activations of Dense layers, by their class in torch.nn.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    name: getattr(nn, name)
    for name in ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Mish", "LeakyReLU", "ELU", "Softplus")
}


def pool(hidden_BTD: Tensor, mask_BT: Tensor, mode: str) -> Tensor:
    """pooled_BD.

    Args:
        hidden_BTD: last hidden states.
        mask_BT: true for tokens, false for padding, which is last.
        mode: a key of `POOLINGS`.
    """
    return POOLINGS[mode](hidden_BTD, mask_BT)


def _mean(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return (hidden_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)


def _cls(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return hidden_BTD[:, 0]


def _last(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    last_B = (mask_BT.sum(1) - 1).clamp(min=0)
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]


def _max(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return hidden_BTD.masked_fill(~mask_BT[..., None], float("-inf")).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _cls, "last": _last, "max": _max}


class Dense(nn.Module):
    """activation(W x + b), as in sentence-transformers.

    Args:
        inputs: width of x.
        outputs: width of the result.
        bias: whether to add b.
        activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.activation(self.linear(x_BD))

    def __str__(self) -> str:
        activation = type(self.activation).__name__
        return f"Dense {self.linear.in_features}→{self.linear.out_features} ({activation})"


class Normalize(nn.Module):
    """Scales vectors to unit length."""

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.normalize(x_BD, dim=1)

    def __str__(self) -> str:
        return "Normalize"
