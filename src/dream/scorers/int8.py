"""Linear layers with 8-bit weights: our own for fast products on CPUs, and those of torchao, which save memory.

In our own, weights have one scale for each output. Inputs have one scale for each token, found at run time, and two
8-bit parts, a coarse and a fine one. With the coarse part alone, large inputs leave the others too few levels, and the
order of candidates is lost. A token's result does not depend on the other tokens of a forward.

Shapes: T tokens, I inputs, O outputs.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

INT8, INT8_WEIGHTS = "int8", "int8_weights"  # values of scorer.scoring.dtype
WEIGHT_LEVELS = 127
TINY = torch.finfo(torch.float32).tiny


def input_levels() -> int:
    """Levels of an input on both sides of 0. Without VNNI, sums of 8-bit inputs would overflow."""
    return 127 if torch.cpu._is_vnni_supported() else 63


@torch.library.custom_op("dream::int8_product", mutates_args=())
def _product(levels_TI: Tensor, zero: int, packed: Tensor, scale_O: Tensor, zero_O: Tensor) -> Tensor:
    """y_TO float32. Inductor compiles the operator of torch only with constant weights, so it is hidden from it."""
    return torch.ops.onednn.qlinear_pointwise(levels_TI, 1.0, zero, packed, scale_O, zero_O, None, 1.0, 0,
                                              torch.float32, "none", [], "")  # fmt: skip


@_product.register_fake
def _(levels_TI: Tensor, zero: int, packed: Tensor, scale_O: Tensor, zero_O: Tensor) -> Tensor:
    return levels_TI.new_empty(len(levels_TI), len(scale_O), dtype=torch.float32)


class Int8Linear(nn.Module):
    """y = x W' + b with 8-bit W. It has no gradient.

    Args:
        weight_OI: W.
        bias_O: b, or None.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        scale_O = weight_OI.abs().amax(1).clamp_min(TINY) / WEIGHT_LEVELS
        self.packed = torch.ops.onednn.qlinear_prepack((weight_OI / scale_O[:, None]).round().to(torch.int8), None)
        self.levels, self.bias_O = input_levels(), bias_O
        self.scale_O, self.zero_O = scale_O / self.levels, torch.zeros(len(scale_O), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """(…, O) from (…, I), float32."""
        x_TI = x.flatten(0, -2)
        range_T1 = x_TI.abs().amax(1, keepdim=True).clamp_min(TINY)
        exact_TI = x_TI * (self.levels / range_T1)
        coarse_TI = exact_TI.round()
        fine_TI = ((exact_TI - coarse_TI) * (2 * self.levels)).round()
        coarse_TO, fine_TO = (
            _product((part_TI + (self.levels + 1)).to(torch.uint8), self.levels + 1, self.packed, self.scale_O,
                     self.zero_O) for part_TI in (coarse_TI, fine_TI)
        )  # fmt: skip
        y_TO = (coarse_TO + fine_TO / (2 * self.levels)) * range_T1
        return (y_TO if self.bias_O is None else y_TO + self.bias_O).unflatten(0, x.shape[:-1])


def to_int8(model: Any) -> None:
    """Replace the linear layers of a float32 model. Embeddings stay, also if they share the output layer's weight."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight.detach(), child.bias))
            elif isinstance(child, Conv1D):  # GPT-2's layers have transposed weights
                setattr(module, name, Int8Linear(child.weight.detach().T.contiguous(), child.bias))


def quantise(model: Any, choice: str, dtype: torch.dtype) -> str:
    """Replace the linear layers, if `scorer.scoring.dtype` asks for it. Returns what results depend on, as a text.

    With `int8_weights`, torchao stores their weights in 8 bits, and products are computed in the model's type.
    """
    if choice == INT8:
        to_int8(model)
        return f"{INT8} {input_levels()}"
    if choice == INT8_WEIGHTS:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        is_whole = lambda module, _: type(module) is nn.Linear and type(module.weight) is nn.Parameter  # noqa: E731
        quantize_(model, Int8WeightOnlyConfig(), is_whole)
        return f"{INT8_WEIGHTS} {dtype}"
    return str(dtype)


@cache
def eight_bit_problem() -> str:
    """Why 8-bit products cannot be used on this CPU; empty if they can."""
    weight_OI = torch.linspace(-1, 1, 64 * 32).view(64, 32)
    try:
        product = Int8Linear(weight_OI, None)(weight_OI)
    except (RuntimeError, AttributeError, NotImplementedError):
        return "needs 8-bit matrix products, which this processor or this build of torch lacks"
    right = torch.allclose(product, weight_OI @ weight_OI.T, atol=0.1)
    return "" if right else "needs 8-bit matrix products, which are wrong on this processor"
