"""Norms and clipping of gradients of which some are sparse: torch's functions take only dense ones.

A sparse gradient is coalesced once, after backward. From then on its values are a dense tensor with one row for each row
of the parameter that the step used.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def compact(parameters: Iterable[Tensor]) -> None:
    """Add up the parts of sparse gradients, which come from several forwards of the encoder in one step."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()


def gradient_values(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients as dense tensors that share their memory; of a sparse gradient only the rows that it has."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]


@contextmanager
def dense_gradients(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within this block, the optimizer's parameters are stand-ins whose gradients are `gradient_values`.

    What is done to these gradients in place, such as clipping, is done to the real ones.
    """
    real = [group["params"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["params"] = [_stand_in(values) for values in gradient_values(group["params"])]
        yield
    finally:
        for group, parameters in zip(optimizer.param_groups, real, strict=True):
            group["params"] = parameters


def _stand_in(gradient: Tensor) -> Tensor:
    """A tensor of the gradient's shape that takes no memory."""
    tensor = gradient.new_empty(1).expand(gradient.shape)
    tensor.grad = gradient
    return tensor
