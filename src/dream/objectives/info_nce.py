"""Contrastive loss on a window's own continuation: needs no language model, so others are measured against it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dream.objectives.base import LossInputs, LossOutput, Objective
from dream.utils.errors import require


def contrast(candidate_sim_BU: Tensor, allowed_BU: Tensor, continuation_sim_BB: Tensor, same_document_BB: Tensor,
             temperature: float) -> Tensor:  # fmt: skip
    """loss_B: cross-entropy (nats) of a window's continuation among all continuations and candidates of the step.

    InfoNCE with hard negatives, as in DPR (Karpukhin et al. 2020, §3.2), the pairs being consecutive spans.
    """
    negatives_only_BB = same_document_BB & ~torch.eye(len(same_document_BB), dtype=torch.bool, device=allowed_BU.device)
    logits = torch.cat([continuation_sim_BB.masked_fill(negatives_only_BB, -torch.inf),
                        candidate_sim_BU.masked_fill(~allowed_BU, -torch.inf)], dim=1) / temperature  # fmt: skip
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def info_nce(sim_BB: Tensor, same_document_BB: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy (nats) of continuation b among the continuations of the batch, given context b.

    Other windows of the same document are no negatives. Source: van den Oord et al. 2018, eq. 4; for consecutive spans
    as pairs, the inverse cloze task (Lee et al. 2019) and Contriever (Izacard et al. 2021, §3).
    """
    nothing_B0 = sim_BB[:, :0]
    return contrast(nothing_B0, nothing_B0.bool(), sim_BB, same_document_BB, temperature).mean()


class InfoNCE(Objective):
    needs_continuation = True

    def __init__(self, temperature: float) -> None:
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        self.temperature = temperature

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.continuation_sim_BB is not None
        return LossOutput(info_nce(inputs.continuation_sim_BB, inputs.same_document_BB, self.temperature))
