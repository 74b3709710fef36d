"""What the language model teaches about a few windows, beside what every window's own continuation does."""

import torch
from torch import Tensor

from dream.objectives.base import Candidates, Evidence, Objective, check_knobs, window_weights
from dream.objectives.info_nce import contrast


def mix(loss_S: Tensor, contrast_B: Tensor, continuation: float) -> Tensor:
    """Mean over windows of (1 - continuation) · loss + continuation · contrast; of the contrast where unscored."""
    scored = len(loss_S)
    mixed_S = (1 - continuation) * loss_S + continuation * contrast_B[:scored]
    return torch.cat([mixed_S, contrast_B[scored:]]).mean()


class MixedObjective(Objective):
    """Base of objectives that have a loss of their own for each scored window: `window_losses`.

    `continuation` is the share of the contrast with the window's own continuation in the loss; with 0, only scored
    windows count. `unhelped_weight` weighs windows that no candidate helps more than no passage. `null_similarity`, of
    objectives that know it, is the cosine at which no passage at all takes part; null: it does not.
    """

    needs_candidates = True

    def __init__(
        self, temperature: float, continuation: float, unhelped_weight: float, null_similarity: float | None = None
    ) -> None:
        check_knobs(temperature, continuation, unhelped_weight, null_similarity)
        self.temperature, self.continuation, self.unhelped_weight = temperature, continuation, unhelped_weight
        self.null_similarity = null_similarity
        self.needs_continuation = continuation > 0

    def window_losses(self, candidates: Candidates) -> Tensor:
        """loss_S of each scored window."""
        raise NotImplementedError

    def __call__(self, evidence: Evidence) -> Tensor:
        candidates = evidence.candidates
        assert candidates is not None
        loss_S = self.window_losses(candidates) * window_weights(candidates.reading, self.unhelped_weight)
        if not self.needs_continuation:
            return loss_S.mean()
        assert evidence.continuation_sim_BB is not None
        contrast_B = contrast(candidates.sim_BU, candidates.allowed_BU, evidence.continuation_sim_BB,
                              evidence.same_document_BB, self.temperature)  # fmt: skip
        return mix(loss_S, contrast_B, self.continuation)
