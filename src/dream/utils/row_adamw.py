"""AdamW that steps only the rows with a gradient, for large tables of which a step uses few rows."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class RowAdamW(torch.optim.AdamW):
    """AdamW. A parameter with a sparse gradient is stepped in the rows of the gradient; other rows stay as they are.

    Moments and weight decay of a row are also updated only in the steps in which the row has a gradient, as in
    `torch.optim.SparseAdam`. Parameters with a dense gradient, and so all weights of a transformer, are stepped by
    `torch.optim.AdamW` itself. The state has the same names and shapes in both cases.

    Sparse gradients must be coalesced: `compact` in `dream.utils.gradients`.

    Args:
        params: parameters or groups, as for AdamW.
        options: keyword arguments of AdamW: `lr`, `betas`, `eps`, `weight_decay`, `fused` and so on.
    """

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step. Returns the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = {
            p: (p.grad, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.grad.is_sparse
        }
        for p, (grad, group) in sparse.items():
            _step_rows(p, grad, self.state[p], group)
            p.grad = None  # AdamW refuses sparse gradients
        super().step()
        for p, (grad, _) in sparse.items():
            p.grad = grad
        return loss


def _step_rows(p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """A step of AdamW (Loshchilov and Hutter 2019, algorithm 2) on a copy of the rows of a coalesced gradient."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    rows_U = grad._indices()[0]
    tensors = p, state["exp_avg"], state["exp_avg_sq"]
    copies = [tensor.index_select(0, rows_U) for tensor in tensors]
    weights, mean, square = ([copy] for copy in copies)
    (beta1, beta2), names = group["betas"], ("lr", "eps", "weight_decay", "maximize", "fused")
    adamw(weights, [grad._values()], mean, square, [], [state["step"]], amsgrad=False, beta1=beta1, beta2=beta2,
          **{name: group[name] for name in names})  # fmt: skip
    for tensor, copy in zip(tensors, copies, strict=True):
        tensor.index_copy_(0, rows_U, copy)
