"""The weighted sum of a text's token vectors, with gradients that have only the rows of the texts' tokens.

PyTorch's own gradient of `embedding_bag` has all rows of the table, in new memory for each call. With 16,000 rows,
most of the time goes into providing and adding this memory.

Shape suffixes: B texts, T tokens (padded), N tokens of all texts, R distinct rows of these, U rows of the table, V
vocabulary, D embedding width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def weighted_sum(table_UD: Tensor, weight_V: Tensor, row_BT: Tensor, ids_BT: Tensor, chosen_BT: Tensor) -> Tensor:
    """summed_BD: Σ_t weight_V[ids_bt] · table_UD[row_bt], over the chosen tokens of each text.

    The gradients of the two arguments are sparse. For parameters, see `make_dense`.

    Args:
        row_BT: row of each token in the table. Different tokens have different rows.
    """
    start_B = F.pad(chosen_BT.sum(1).cumsum(0), (1, 0))
    return _WeightedSum.apply(table_UD, weight_V, row_BT[chosen_BT], ids_BT[chosen_BT], start_B)


def make_dense(parameter: nn.Parameter) -> None:
    """Let the sparse gradients of a backward pass become one dense gradient, which every optimizer takes."""
    mark = id(parameter)  # a copy of the parameter has no hook, but may have the mark
    if parameter.requires_grad and getattr(parameter, "gets_dense_gradient", None) != mark:
        parameter.register_post_accumulate_grad_hook(_make_gradient_dense)
        parameter.gets_dense_gradient = mark  # type: ignore[attr-defined]


def _make_gradient_dense(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table_UD: Tensor, weight_V: Tensor, row_N: Tensor, token_N: Tensor, start_B: Tensor
    ) -> Tensor:
        ctx.save_for_backward(table_UD, weight_V, row_N, token_N, start_B)
        weight_N = weight_V[token_N]
        return F.embedding_bag(
            row_N, table_UD, start_B, mode="sum", per_sample_weights=weight_N, include_last_offset=True
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """A row gets its weight times the sum of its texts' gradients; the weight, the row's product with this sum."""
        (gradient_BD,) = gradients
        table_UD, weight_V, row_N, token_N, start_B = ctx.saved_tensors
        text_N = torch.repeat_interleave(start_B.diff())
        sorted_N, order_N = row_N.sort(stable=True)
        row_R, count_R = torch.unique_consecutive(sorted_N, return_counts=True)
        start_R = F.pad(count_R.cumsum(0), (1, 0))
        token_R = token_N[order_N][start_R[:-1]]
        summed_RD = F.embedding_bag(text_N[order_N], gradient_BD, start_R, mode="sum", include_last_offset=True)
        weight_R = (table_UD[row_R] * summed_RD).sum(1)
        table_RD = summed_RD.mul_(weight_V[token_R, None])
        return _of_rows(row_R, table_RD, table_UD), _of_rows(token_R, weight_R, weight_V), None, None, None


def _of_rows(rows_R: Tensor, values: Tensor, whole: Tensor) -> Tensor:
    """A sparse gradient of the tensor `whole`. Two rows are never the same."""
    return torch.sparse_coo_tensor(rows_R[None], values, whole.shape, check_invariants=False)
