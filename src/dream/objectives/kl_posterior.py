"""KL divergence between the LM posterior over candidates and the retriever's distribution.

Shapes: B windows of a step, S scored windows of the step, K candidates of a window, U distinct candidates.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dream.objectives.base import Candidates, LossInputs, LossOutput, Objective, check_knobs, spread, window_weights
from dream.utils.errors import require

Columns = tuple[Tensor, Tensor, Tensor]  # target, cosines, and which are allowed: a row for each window of the step


def kl_posterior(
    posterior_BU: Tensor, sim_BU: Tensor, allowed_BU: Tensor, temperature: float, direction: str
) -> Tensor:
    """loss_b = KL(posterior ‖ p) = Σ_u posterior_u · (log posterior_u - log p_u), in nats; reverse: KL(p ‖ posterior).

    p = softmax(sim / temperature) over the allowed columns. The reverse KL would be infinite if p had mass in a column
    without posterior mass. For the reverse KL, p is therefore restricted to the columns with posterior mass.
    Source of the forward KL: PDist of Atlas (Izacard et al. 2022, §2.2) and ART (Sachan et al. 2022, eq. 4).

    Args:
        posterior_BU: the target distribution; each row sums to 1.
        sim_BU: cosines, with gradient.
        allowed_BU: the columns of p. The posterior has no mass in other columns.
        temperature: temperature of the retriever's softmax over cosines.
        direction: `forward` or `reverse`.
    """
    if direction == "reverse":
        allowed_BU = allowed_BU & (posterior_BU > 0)
    log_p_BU = torch.log_softmax((sim_BU / temperature).masked_fill(~allowed_BU, -torch.inf), dim=1)
    log_p_BU = log_p_BU.masked_fill(~allowed_BU, 0.0)
    log_posterior_BU = posterior_BU.clamp_min(torch.finfo(posterior_BU.dtype).tiny).log()
    if direction == "reverse":
        terms_BU = (log_p_BU.exp() * (log_p_BU - log_posterior_BU)).masked_fill(~allowed_BU, 0.0)
    else:
        terms_BU = posterior_BU * (log_posterior_BU - log_p_BU)
    return terms_BU.sum(1)


class KLPosterior(Objective):
    """loss = mean over windows of KL(target ‖ p), in nats. p is the retriever's distribution over candidates.

        posterior_k = softmax_k(loglik_k / lm_temperature)
        target      = (1 - continuation) · posterior + continuation · (the window's own continuation)
        p           = softmax(sim / temperature)

    The target mixes the LM posterior with the window's own continuation (weight `continuation`). Unscored windows use
    only the continuation as positive, and their candidates as hard negatives.

    Args:
        temperature: temperature of the retriever's softmax over cosines.
        lm_temperature: temperature of the posterior's softmax. 1 gives Bayes' rule, because log-likelihoods are sums
            in nats.
        direction: `forward`: KL(target ‖ p); `reverse`: KL(p ‖ target).
        in_batch: p includes all candidates and continuations of the step, not only those of the window.
        continuation: weight of the own continuation in the target, at least 0 and below 1. With 0, only scored windows
            count.
        null_similarity: if given, "no passage" is an additional candidate of a scored window, with this cosine.
            Source: REALM (Guu et al. 2020, §3.3).
        unhelped_weight: weight, 0 to 1, of scored windows whose target no candidate makes more likely than no passage
            does.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> objective = KLPosterior(0.05, 1.0, "forward", True, 0.7, None, 1.0)
        >>> loss, loglik_SK = objective(inputs).loss, objective(inputs).candidate_loglik_SK
    """

    needs_candidates = True

    def __init__(
        self,
        temperature: float,
        lm_temperature: float,
        direction: Literal["forward", "reverse"],
        in_batch: bool,
        continuation: float,
        null_similarity: float | None,
        unhelped_weight: float,
    ) -> None:
        check_knobs(temperature, continuation, unhelped_weight, null_similarity)
        require(lm_temperature > 0, "objective.lm_temperature", lm_temperature, "must be above 0")
        require(direction in ("forward", "reverse"), "objective.direction", direction, "choose forward or reverse")
        self.temperature, self.lm_temperature = temperature, lm_temperature
        self.direction, self.in_batch, self.continuation = direction, in_batch, continuation
        self.null_similarity, self.unhelped_weight = null_similarity, unhelped_weight
        self.needs_continuation = continuation > 0

    def candidate_loglik(self, candidates: Candidates) -> Tensor:
        """candidate_loglik_SK in nats: the posterior is softmax_k(candidate_loglik / lm_temperature)."""
        return candidates.scores.loglik_SK

    def __call__(self, inputs: LossInputs) -> LossOutput:
        candidates = inputs.candidates
        assert candidates is not None
        loglik_SK = self.candidate_loglik(candidates)
        target_SK, null_S1, weights = self._target(candidates, loglik_SK)
        columns = [self._candidate_columns(candidates, target_SK), self._null_column(candidates, null_S1)]
        if self.needs_continuation:
            given_B1 = torch.cat([target for target, _, _ in columns], dim=1).sum(1, keepdim=True)
            columns.append(self._continuation_columns(inputs, 1 - given_B1))
        scored, windows = len(target_SK), len(candidates.sim_BU)
        used = windows if self.needs_continuation else scored
        target, sim, is_allowed = (torch.cat(part, dim=1)[:used] for part in zip(*columns, strict=True))
        loss_B = kl_posterior(target, sim, is_allowed, self.temperature, self.direction)
        return LossOutput(torch.cat([loss_B[:scored] * weights, loss_B[scored:]]).mean(), loglik_SK, weights)

    def _candidate_columns(self, candidates: Candidates, target_SK: Tensor) -> Columns:
        """A column for each distinct candidate of the step. Only scored windows have targets among them."""
        windows, width = candidates.sim_BU.shape
        target_SU = (1 - self.continuation) * spread(target_SK, candidates.columns_SK, width)
        if self.in_batch:
            allowed_BU = candidates.allowed_BU
        else:
            own_SU = spread(torch.ones_like(target_SK), candidates.columns_SK, width) > 0
            allowed_BU = _with_unscored(own_SU, windows)
        return _with_unscored(target_SU, windows), candidates.sim_BU, allowed_BU

    def _null_column(self, candidates: Candidates, null_S1: Tensor) -> Columns:
        """The column of "no passage". It has the width 0 if this is no candidate."""
        windows = len(candidates.sim_BU)
        target_B1 = _with_unscored((1 - self.continuation) * null_S1, windows)
        sim_B1 = torch.full_like(target_B1, self.null_similarity or 0.0, dtype=candidates.sim_BU.dtype)
        return target_B1, sim_B1, _with_unscored(torch.ones_like(null_S1, dtype=torch.bool), windows)

    def _continuation_columns(self, inputs: LossInputs, rest_B1: Tensor) -> Columns:
        """A column for each continuation of the step. The window's own one has the rest of the target."""
        assert inputs.continuation_sim_BA is not None
        own_BA = torch.eye(*inputs.same_document_BA.shape, dtype=torch.bool, device=rest_B1.device)
        allowed_BA = own_BA | ~inputs.same_document_BA if self.in_batch else own_BA
        return own_BA * rest_B1, inputs.continuation_sim_BA, allowed_BA

    def _target(self, candidates: Candidates, loglik_SK: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """(target_SK of the candidates, target of "no passage", weights of the windows)"""
        return *self._posterior(candidates, loglik_SK), window_weights(candidates.scores, self.unhelped_weight)

    def _posterior(self, candidates: Candidates, loglik_SK: Tensor) -> tuple[Tensor, Tensor]:
        """(posterior_SK of the candidates, posterior of "no passage"). The second is (S, 0) if it is no candidate."""
        parts = [loglik_SK]
        if self.null_similarity is not None:
            parts.append(candidates.scores.null_S[:, None])
        posterior = torch.softmax(torch.cat(parts, dim=1) / self.lm_temperature, dim=1)
        k = loglik_SK.shape[1]
        return posterior[:, :k], posterior[:, k:]


def _with_unscored(rows_SX: Tensor, windows: int) -> Tensor:
    """Rows of zeros for the windows that are not scored, after those of the scored ones."""
    return F.pad(rows_SX, (0, 0, 0, windows - len(rows_SX)))
