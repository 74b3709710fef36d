"""Rows of all ranks of a job as one tensor, with gradient.

Shape suffixes: N rows on this rank, M rows on all ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Gather(torch.autograd.Function):
    """See `ranks.gather`. DistributedDataParallel then averages the gradients of the weights over the ranks.

    If each rank's loss is the mean over its windows, this is the gradient of the mean over the windows of all ranks.
    """

    @staticmethod
    def forward(ctx: Any, rows_N: Tensor, rank: int, world: int) -> Tensor:
        ctx.rank, ctx.world = rank, world
        parts = [torch.empty_like(rows_N, memory_format=torch.contiguous_format) for _ in range(world)]
        dist.all_gather(parts, rows_N.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total_M = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_M)
        return total_M.chunk(ctx.world)[ctx.rank], None, None
