"""What the module hands to an objective, and what an objective asks for."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class Candidates:
    """The U distinct candidates of a step, seen from its B windows. The LM scored K of them for the first S windows."""

    sim_BU: Tensor  # cosine of context b and candidate u by the current encoder, with gradient
    columns_SK: Tensor  # column in U of each of the window's own candidates
    allowed_BU: Tensor  # false where u comes from the window's own document
    loglik_SK: Tensor  # nats of the target, from the frozen LM

    @property
    def sim_SK(self) -> Tensor:
        """Similarities of each scored window with its own candidates."""
        return self.sim_BU[: len(self.columns_SK)].gather(1, self.columns_SK)


@dataclass
class Evidence:
    """All that is known about B windows in one step. What an objective does not ask for is None."""

    same_document_BB: Tensor  # whether two windows come from one document
    candidates: Candidates | None
    continuation_sim_BB: Tensor | None  # cosine of context b and continuation of window c, with gradient


class Objective(Protocol):
    """Turns the evidence into a scalar loss. One file and one YAML add another."""

    needs_loglik: bool
    needs_continuation: bool
    temperature: float  # of the retriever's softmax
    lm_temperature: float  # of the posterior's softmax, for objectives that need the log-likelihoods

    def __call__(self, evidence: Evidence) -> Tensor: ...


def spread(values_BK: Tensor, columns_BK: Tensor, width: int) -> Tensor:
    """Put each window's K values into their columns of a zero matrix of `width` columns: values_BU."""
    return torch.zeros(len(values_BK), width, dtype=values_BK.dtype, device=values_BK.device).scatter_add(
        1, columns_BK, values_BK
    )
