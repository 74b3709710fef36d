"""Linear layers with 8-bit weights and inputs, for CPUs.

Weights have one scale for each output, inputs one for each token, found at run time. So a token's result does not
depend on the other tokens of a forward. Products are summed exactly, in integers.

Shapes: T tokens, I inputs, O outputs.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

WEIGHT_LEVELS = 127
INPUT_LEVELS, INPUT_ZERO = 63, 64  # 7 bits: with 8, processors without VNNI would overflow


@torch.library.custom_op("dream::int8_product", mutates_args=())
def _product(levels_TI: Tensor, packed: Tensor, scale_O: Tensor, zero_O: Tensor) -> Tensor:
    """y_TO float32. Inductor compiles the operator of torch only with constant weights, so it is hidden from it."""
    return torch.ops.onednn.qlinear_pointwise(levels_TI, 1.0, INPUT_ZERO, packed, scale_O, zero_O, None, 1.0, 0,
                                              torch.float32, "none", [], "")  # fmt: skip


@_product.register_fake
def _(levels_TI: Tensor, packed: Tensor, scale_O: Tensor, zero_O: Tensor) -> Tensor:
    return levels_TI.new_empty(len(levels_TI), len(scale_O), dtype=torch.float32)


class Int8Linear(nn.Module):
    """y = x W' + b with 8-bit x and W. It has no gradient.

    Args:
        weight_OI: W.
        bias_O: b, or None.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        scale_O = weight_OI.float().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS
        weight_OI = (weight_OI.float() / scale_O[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(weight_OI, None)
        self.scale_O, self.bias_O = scale_O / INPUT_LEVELS, bias_O
        self.zero_O = torch.zeros(len(scale_O), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """(…, O) from (…, I), of the type of x."""
        x_TI = x.flatten(0, -2).float()
        range_T1 = x_TI.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        levels_TI = ((x_TI * (INPUT_LEVELS / range_T1)).round() + INPUT_ZERO).to(torch.uint8)
        y_TO = _product(levels_TI, self.packed, self.scale_O, self.zero_O) * range_T1
        y_TO = y_TO if self.bias_O is None else y_TO + self.bias_O
        return y_TO.to(x.dtype).unflatten(0, x.shape[:-1])


def to_int8(model: Any) -> None:
    """Replace the linear layers of a model. Embeddings keep their type, also if they share the output layer's weight.

    Raises:
        RuntimeError: this processor or this build of torch has no 8-bit products.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight.detach(), child.bias))
            elif isinstance(child, Conv1D):  # GPT-2's layers have transposed weights
                setattr(module, name, Int8Linear(child.weight.detach().T.contiguous(), child.bias))


@cache
def eight_bit_problem() -> str:
    """Why 8-bit products cannot be used on this CPU; empty if they can."""
    weight_OI = torch.linspace(-1, 1, 64 * 32).view(64, 32)
    try:
        product = Int8Linear(weight_OI, None)(weight_OI)
    except (RuntimeError, AttributeError, NotImplementedError):
        return "needs 8-bit matrix products, which this processor or this build of torch lacks"
    right = torch.allclose(product, weight_OI @ weight_OI.T, atol=0.2)
    return "" if right else "needs 8-bit matrix products, which are wrong on this processor"
