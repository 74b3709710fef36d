"""The Revela objective: a window also attends to all candidates of the step, weighted by similarity."""

import torch
from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.mixed import MixedObjective


def in_batch_weights(sim_SU: Tensor, allowed_SU: Tensor, temperature: float) -> Tensor:
    """weights_SU = softmax_u(cos_su / temperature) over the texts that a window may read. Source: Revela, below."""
    return torch.softmax((sim_SU / temperature).masked_fill(~allowed_SU, -torch.inf), dim=1)


class InBatchAttention(MixedObjective):
    """loss = -mean_t log p_LM(y_t | y_<t, x), where every layer adds Σ_u w_u · b_u to what it attends to.

    b_u is what the window's tokens read in text u. Source: Revela (arXiv 2506.16552). The texts of the batch are the
    candidates of all scored windows, and the language model stays frozen, whereas the paper trains it, too.
    """

    def __init__(self, temperature: float, continuation: float, unhelped_weight: float, value_norm: bool) -> None:
        super().__init__(temperature, continuation, unhelped_weight)
        self.value_norm = value_norm

    def window_losses(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        scored, columns_U = len(candidates.columns_SK), candidates.columns_SK.unique()
        sim_SU, allowed_SU = (part[:scored, columns_U] for part in (candidates.sim_BU, candidates.allowed_BU))
        weights_SU = in_batch_weights(sim_SU, allowed_SU, self.temperature)
        ids_U = candidates.ids_U.to(columns_U.device)[columns_U]
        return -candidates.scores.in_batch(weights_SU, ids_U, self.value_norm), None
