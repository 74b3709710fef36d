"""The Revela objective: a window also attends to all candidates of the step, weighted by similarity.

Shapes: S scored windows, U distinct candidates of the step.
"""

import torch
from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.mixed import MixedObjective


def in_batch_weights(sim_SU: Tensor, allowed_SU: Tensor, temperature: float) -> Tensor:
    """weights_SU = softmax_u(sim_su / temperature) over the allowed texts of each window; 0 for the others.

    Source: Revela (arXiv 2506.16552).
    """
    return torch.softmax((sim_SU / temperature).masked_fill(~allowed_SU, -torch.inf), dim=1)


class InBatchAttention(MixedObjective):
    """loss_s = -mean_t log p_LM(y_t | y_<t, x), nats per target token. Every layer adds Σ_u w_u · b_u.

    The sum is added to the layer's attention output. b_u is the attention output of the window's rows over text u, and
    w_u = softmax_u(sim_u / temperature). The loss does not use log-likelihoods of single candidates.
    Source: Revela (arXiv 2506.16552), with two differences: the texts are the candidates of all scored windows, and the
    language model is frozen.

    Args:
        temperature: temperature of the retriever's softmax over cosines.
        continuation: share of the contrast with the window's own continuation, at least 0 and below 1.
        unhelped_weight: weight, 0 to 1, of windows whose target no candidate makes more likely than no passage does.
        value_norm: divide b_u by the attention-weighted mean norm of the values of text u.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(self, temperature: float, continuation: float, unhelped_weight: float, value_norm: bool) -> None:
        super().__init__(temperature, continuation, unhelped_weight)
        self.value_norm = value_norm

    def prepare(self, scorer, store, k: int) -> None:
        """Raises ConfigError if the scorer has no gradient."""
        scorer.require_gradient()

    def window_losses(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        scored, columns_U = len(candidates.columns_SK), candidates.scored_columns_U
        sim_SU, allowed_SU = (part[:scored, columns_U] for part in (candidates.sim_BU, candidates.allowed_BU))
        weights_SU = in_batch_weights(sim_SU, allowed_SU, self.temperature)
        ids_U = candidates.ids_U.to(columns_U.device)[columns_U]
        return -candidates.scores.in_batch(weights_SU, ids_U, self.value_norm), None
