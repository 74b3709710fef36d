"""KL divergence between the LM posterior over candidates and the retriever's distribution."""

from typing import Literal

import torch
from torch import Tensor

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
    """`in_batch`: p runs over every candidate of the step, not the window's own K alone."""

    needs_loglik = True
    needs_continuation = False

    def __init__(
        self, temperature: float, lm_temperature: float, direction: Literal["forward", "reverse"], in_batch: bool
    ) -> None:
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        require(lm_temperature > 0, "objective.lm_temperature", lm_temperature, "must be above 0")
        require(direction in ("forward", "reverse"), "objective.direction", direction, "choose forward or reverse")
        self.temperature, self.lm_temperature = temperature, lm_temperature
        self.direction, self.in_batch = direction, in_batch

    def __call__(self, evidence: Evidence) -> Tensor:
        candidates = evidence.candidates
        assert candidates is not None
        width = candidates.sim_BU.shape[1]
        posterior_BK = torch.softmax(candidates.loglik_BK / self.lm_temperature, dim=1)
        posterior_BU = spread(posterior_BK, candidates.columns_BK, width)
        allowed_BU = candidates.allowed_BU
        if not self.in_batch:
            allowed_BU = allowed_BU & (spread(torch.ones_like(posterior_BK), candidates.columns_BK, width) > 0)
        return kl_posterior(posterior_BU, candidates.sim_BU, allowed_BU, self.temperature, self.direction)
