"""Contrastive loss on a window's own continuation. It needs no language model, and is the baseline of the objectives.

Shapes: B windows of a step, U distinct candidates of the step.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dream.objectives.base import LossInputs, LossOutput, Objective
from dream.utils.errors import require


def contrast(candidate_sim_BU: Tensor, negative_BU: Tensor, continuation_sim_BA: Tensor, same_document_BA: Tensor,
             temperature: float) -> Tensor:  # fmt: skip
    """loss_b = -log softmax(sim_b / temperature) at the window's own continuation, in nats.

    The softmax runs over all continuations and candidates of the step, except those of the window's own document.
    Source: InfoNCE with hard negatives, as in DPR (Karpukhin et al. 2020, §3.2). Here a pair is two consecutive spans.

    Args:
        candidate_sim_BU: cosines with the candidates.
        negative_BU: whether candidate u is a negative of window b.
        continuation_sim_BA: cosines with the continuations.
        same_document_BA: whether two windows come from the same document.
        temperature: temperature of the softmax over cosines.
    """
    excluded_BA = same_document_BA & ~torch.eye(*same_document_BA.shape, dtype=torch.bool, device=negative_BU.device)
    logits = torch.cat([continuation_sim_BA.masked_fill(excluded_BA, -torch.inf),
                        candidate_sim_BU.masked_fill(~negative_BU, -torch.inf)], dim=1) / temperature  # fmt: skip
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def info_nce(sim_BA: Tensor, same_document_BA: Tensor, temperature: float) -> Tensor:
    """loss = -mean_b log (exp(sim_bb / temperature) / Σ_c exp(sim_bc / temperature)), in nats.

    The sum is over c = b and all windows c of other documents.
    Source: InfoNCE (van den Oord et al. 2018, eq. 4). Pairs of spans from one document are used by the inverse cloze
    task (Lee et al. 2019) and Contriever (Izacard et al. 2021, §3).

    Args:
        sim_BA: cosine of the context of window b and the continuation of window c.
        same_document_BA: whether two windows come from the same document.
        temperature: of the softmax over cosines.
    """
    nothing_B0 = sim_BA[:, :0]
    return contrast(nothing_B0, nothing_B0.bool(), sim_BA, same_document_BA, temperature).mean()


class InfoNCE(Objective):
    """Cross-entropy of a window's own continuation among the continuations of the step: see `info_nce`.

    Args:
        temperature: of the softmax over cosines.

    Raises:
        ConfigError: the temperature is not above 0.
    """

    needs_continuation = True

    def __init__(self, temperature: float) -> None:
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        self.temperature = temperature

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.continuation_sim_BA is not None
        return LossOutput(info_nce(inputs.continuation_sim_BA, inputs.same_document_BA, self.temperature))
