"""Facts about a language model: where its weights are, their checksums, and how far its attention reaches."""

from typing import Any

import torch
from torch import Tensor

SUMMED = 1 << 20  # weights that are summed at once


def first_device(device_map: str) -> str:
    """The device whose type of weights is used: with `auto` and the like, the GPU if there is one."""
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device_map


def checksums(model: Any) -> list[int]:
    """Sums of the weights' bits as integers. They are exact, so they do not depend on machine or order of summation.

    A bfloat16 weight has the bits of its float32 value, whose last 16 bits are 0.
    """
    bits, factor = {2: torch.int16, 4: torch.int32}, {torch.bfloat16: 1 << 16}
    return [_sum(weight.detach().view(bits[weight.element_size()])) * factor.get(weight.dtype, 1)
            for weight in model.parameters()]  # fmt: skip


def _sum(values: Tensor) -> int:
    """Sum in pieces, because torch copies what it sums to 64 bits. No tensor is kept between the pieces."""
    return sum(int(piece.sum(dtype=torch.int64)) for piece in values.flatten().split(SUMMED))


def attends_to(model: Any, longest: int) -> bool:
    """Whether every layer attends to this number of tokens: not with a shorter sliding window."""
    config = model.config.get_text_config()
    reach = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
    return all(tokens is None or tokens >= longest for tokens in reach)
