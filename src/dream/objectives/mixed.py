"""Base class of objectives that mix a loss from the language model with a contrastive loss on the continuation.

Shapes: B windows of a step, S scored windows of the step (the first ones), K candidates of a window.
"""

import torch
from torch import Tensor

from dream.objectives.base import Candidates, LossInputs, LossOutput, Objective, check_knobs, window_weights
from dream.objectives.info_nce import contrast


def mix(loss_S: Tensor, contrast_B: Tensor, continuation: float) -> Tensor:
    """Mean over windows of (1 - continuation) · loss + continuation · contrast; for unscored windows, of the contrast.

    Args:
        loss_S: losses of the scored windows, nats per target token.
        contrast_B: contrastive losses of all windows, nats.
        continuation: share of the contrast in scored windows, 0 to 1.
    """
    scored = len(loss_S)
    mixed_S = (1 - continuation) * loss_S + continuation * contrast_B[:scored]
    return torch.cat([mixed_S, contrast_B[scored:]]).mean()


class MixedObjective(Objective):
    """Base class of objectives with a loss for each scored window. Subclasses define `window_losses`.

    These losses are multiplied by `window_weights`. `mix` adds the `contrast` with the window's own continuation.

    Args:
        temperature: temperature of the retriever's softmax over cosines.
        continuation: share of the contrast, at least 0 and below 1. With 0, only scored windows count.
        unhelped_weight: weight, 0 to 1, of windows whose target no candidate makes more likely than no passage does.
        null_similarity: if given, "no passage" is an additional candidate with this cosine. Not all objectives support
            it.

    Raises:
        ConfigError: a value is out of its range.
    """

    needs_candidates = True

    def __init__(
        self, temperature: float, continuation: float, unhelped_weight: float, null_similarity: float | None = None
    ) -> None:
        check_knobs(temperature, continuation, unhelped_weight, null_similarity)
        self.temperature, self.continuation, self.unhelped_weight = temperature, continuation, unhelped_weight
        self.null_similarity = null_similarity
        self.needs_continuation = continuation > 0

    def window_losses(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        """(loss_S of the scored windows in nats per target token, candidate_loglik_SK or None). See `LossOutput`."""
        raise NotImplementedError

    def __call__(self, inputs: LossInputs) -> LossOutput:
        candidates = inputs.candidates
        assert candidates is not None
        loss_S, loglik_SK = self.window_losses(candidates)
        weights = window_weights(candidates.scores, self.unhelped_weight)
        loss_S = loss_S * weights
        if not self.needs_continuation:
            return LossOutput(loss_S.mean(), loglik_SK, weights)
        assert inputs.continuation_sim_BA is not None
        contrast_B = contrast(candidates.sim_BU, candidates.negative_BU, inputs.continuation_sim_BA,
                              inputs.same_document_BA, self.temperature)  # fmt: skip
        return LossOutput(mix(loss_S, contrast_B, self.continuation), loglik_SK, weights)
