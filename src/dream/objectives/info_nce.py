"""Contrastive loss on a window's own continuation: needs no language model, so others are measured against it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dream.errors import require
from dream.objectives.base import Evidence, Objective


def info_nce(sim_BB: Tensor, same_document_BB: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy (nats) of continuation b among the continuations of the batch, given context b.

    Other windows of the same document are no negatives. Source: van den Oord et al. 2018, eq. 4; for consecutive spans
    as pairs, the inverse cloze task (Lee et al. 2019) and Contriever (Izacard et al. 2021, §3).
    """
    negatives_only_BB = same_document_BB & ~torch.eye(len(sim_BB), dtype=torch.bool, device=sim_BB.device)
    logits_BB = (sim_BB / temperature).masked_fill(negatives_only_BB, -torch.inf)
    return F.cross_entropy(logits_BB, torch.arange(len(sim_BB), device=sim_BB.device))


class InfoNCE(Objective):
    needs_continuation = True

    def __init__(self, temperature: float) -> None:
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        self.temperature = temperature

    def __call__(self, evidence: Evidence) -> Tensor:
        assert evidence.continuation_sim_BB is not None
        return info_nce(evidence.continuation_sim_BB, evidence.same_document_BB, self.temperature)
