"""Linear layers with 8-bit weights and inputs, for CPUs.

Weights have one scale for each output, inputs one for each token, found at run time. So a token's result does not
depend on the other tokens of a forward. Products are summed exactly, in integers. A few inputs of a layer are far
larger than the others and would leave them few levels, so they stay float32 with their weights (LLM.int8,
https://arxiv.org/abs/2208.07339).

Shapes: T tokens, I inputs, O outputs, E inputs that stay float32.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

KEPT = 1 / 16  # share of the inputs that stay float32
WEIGHT_LEVELS = 127
CALIBRATION = (4, 64)  # sequences and random tokens of each; large inputs are the same for all texts
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
    """y = x W' + b with 8-bit x and W, except for some inputs. It has no gradient.

    Args:
        weight_OI: W.
        bias_O: b, or None.
        kept_E: numbers of the inputs that stay float32.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, kept_E: Tensor) -> None:
        super().__init__()
        self.kept_E, self.kept_EO, self.bias_O = kept_E, weight_OI[:, kept_E].T.contiguous(), bias_O
        weight_OI = weight_OI.index_fill(1, kept_E, 0.0)
        scale_O = weight_OI.abs().amax(1).clamp_min(TINY) / WEIGHT_LEVELS
        self.packed = torch.ops.onednn.qlinear_prepack((weight_OI / scale_O[:, None]).round().to(torch.int8), None)
        self.levels = input_levels()
        self.scale_O, self.zero_O = scale_O / self.levels, torch.zeros(len(scale_O), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """(…, O) from (…, I), float32."""
        x_TI = x.flatten(0, -2)
        rest_TI = x_TI.index_fill(1, self.kept_E, 0.0)
        range_T1 = rest_TI.abs().amax(1, keepdim=True).clamp_min(TINY)
        levels_TI = ((rest_TI * (self.levels / range_T1)).round() + (self.levels + 1)).to(torch.uint8)
        y_TO = _product(levels_TI, self.levels + 1, self.packed, self.scale_O, self.zero_O) * range_T1
        y_TO = y_TO + x_TI[:, self.kept_E] @ self.kept_EO
        return (y_TO if self.bias_O is None else y_TO + self.bias_O).unflatten(0, x.shape[:-1])


@torch.no_grad()
def to_int8(model: Any) -> None:
    """Replace linear layers of a float32 model. Embeddings stay, also if they share the output layer's weight.

    Layers with more inputs than the model's width (the second of a feed-forward block) stay, too. Their large inputs
    differ from token to token, and 8 bits there cost more accuracy than in all other layers together.
    """
    width = model.get_input_embeddings().weight.shape[1]
    kinds = (nn.Linear, Conv1D)  # Conv1D is GPT-2's linear layer, with transposed weights
    largest: dict[nn.Module, Tensor] = {}
    watch = lambda layer, args: largest.update({layer: args[0].abs().flatten(0, -2).amax(0)})  # noqa: E731
    hooks = [module.register_forward_pre_hook(watch) for module in model.modules() if isinstance(module, kinds)]
    ids_PT = torch.randint(len(model.get_input_embeddings().weight), CALIBRATION,
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
    model(input_ids=ids_PT, use_cache=False)
    for hook in hooks:
        hook.remove()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child in largest and len(largest[child]) <= width:
                weight_OI = child.weight.T.contiguous() if isinstance(child, Conv1D) else child.weight
                kept_E = largest[child].topk(max(1, int(KEPT * len(largest[child])))).indices.sort().values
                setattr(module, name, Int8Linear(weight_OI.detach(), child.bias, kept_E))


@cache
def eight_bit_problem() -> str:
    """Why 8-bit products cannot be used on this CPU; empty if they can."""
    weight_OI = torch.linspace(-1, 1, 64 * 32).view(64, 32)
    try:
        product = Int8Linear(weight_OI, None, torch.tensor([3]))(weight_OI)
    except (RuntimeError, AttributeError, NotImplementedError):
        return "needs 8-bit matrix products, which this processor or this build of torch lacks"
    right = torch.allclose(product, weight_OI @ weight_OI.T, atol=0.2)
    return "" if right else "needs 8-bit matrix products, which are wrong on this processor"
