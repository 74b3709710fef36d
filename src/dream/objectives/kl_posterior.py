"""KL divergence between the LM posterior over candidates and the retriever's distribution."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dream.errors import require
from dream.objectives.base import Evidence, spread


def kl_posterior(
    posterior_BU: Tensor, sim_BU: Tensor, allowed_BU: Tensor, temperature: float, direction: str
) -> Tensor:
    """Mean over windows of KL(posterior ‖ p), or of KL(p ‖ posterior) where `direction` is reverse, in nats.

    p = softmax(sim / temperature) over the allowed columns. Forward: PDist of Atlas (Izacard et al. 2022, §2.2) and ART
    (Sachan et al. 2022, eq. 4). Reverse is finite only where the posterior has mass, so that p leaves out the other
    columns.
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
    return terms_BU.sum(1).mean()


class KLPosterior:
    """The target of window b: `continuation` of the mass on its own continuation, the rest as the LM's posterior.

    A continuation is a candidate too, one whose posterior needs no forward: it holds the target word for word. Windows
    that the LM did not score have it alone. With `in_batch`, p runs over every candidate and continuation of the step,
    and not over the window's own K (and continuation) alone.
    """

    needs_loglik = True

    def __init__(
        self,
        temperature: float,
        lm_temperature: float,
        direction: Literal["forward", "reverse"],
        in_batch: bool,
        continuation: float,
    ) -> None:
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        require(lm_temperature > 0, "objective.lm_temperature", lm_temperature, "must be above 0")
        require(direction in ("forward", "reverse"), "objective.direction", direction, "choose forward or reverse")
        require(0 <= continuation < 1, "objective.continuation", continuation, "at least 0 and below 1")
        self.temperature, self.lm_temperature = temperature, lm_temperature
        self.direction, self.in_batch, self.continuation = direction, in_batch, continuation
        self.needs_continuation = continuation > 0

    def __call__(self, evidence: Evidence) -> Tensor:
        candidates = evidence.candidates
        assert candidates is not None
        scored, width = len(candidates.loglik_SK), candidates.sim_BU.shape[1]
        posterior_SK = torch.softmax(candidates.loglik_SK / self.lm_temperature, dim=1)
        target_SU = spread(posterior_SK, candidates.columns_SK, width)
        own_SU = spread(torch.ones_like(posterior_SK), candidates.columns_SK, width) > 0
        allowed_SU = candidates.allowed_BU[:scored] if self.in_batch else own_SU
        if not self.needs_continuation:
            sim_SU = candidates.sim_BU[:scored]
            return kl_posterior(target_SU, sim_SU, allowed_SU, self.temperature, self.direction)
        assert evidence.continuation_sim_BB is not None
        own_BB = torch.eye(len(evidence.same_document_BB), dtype=torch.bool, device=target_SU.device)
        unscored = (0, 0, 0, len(own_BB) - scored)  # rows to add below
        target_BU = F.pad((1 - self.continuation) * target_SU, unscored)
        target_BB = own_BB * (1 - target_BU.sum(1, keepdim=True))
        allowed_BU = candidates.allowed_BU if self.in_batch else F.pad(own_SU, unscored)
        allowed_BB = own_BB | ~evidence.same_document_BB if self.in_batch else own_BB
        return kl_posterior(
            torch.cat([target_BU, target_BB], dim=1),
            torch.cat([candidates.sim_BU, evidence.continuation_sim_BB], dim=1),
            torch.cat([allowed_BU, allowed_BB], dim=1),
            self.temperature,
            self.direction,
        )
