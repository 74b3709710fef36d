"""What the module hands to an objective, and what an objective asks for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dream.errors import require

if TYPE_CHECKING:
    from dream.scorers.base import CausalScorer
    from dream.scorers.reading import Reading
    from dream.store.store import Store


@dataclass
class Candidates:
    """The U distinct candidates of a step, seen from its B windows. S of them the LM may be asked about, K for each."""

    sim_BU: Tensor  # cosine of context b and candidate u by the current encoder, with gradient
    columns_SK: Tensor  # column in U of each of the window's own candidates
    allowed_BU: Tensor  # false where u comes from the window's own document
    ids_U: Tensor  # passage ids
    reading: "Reading"  # what the frozen LM makes of them: it works when it is asked

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


class Objective:
    """Turns the evidence into a scalar loss. One file and one YAML add another."""

    needs_candidates: bool = False  # and with them the language model
    needs_continuation: bool = False
    temperature: float  # of the retriever's softmax over cosines
    lm_temperature: float = 1.0  # of the posterior's softmax, for objectives that have one

    def prepare(self, scorer: "CausalScorer", store: "Store", k: int) -> None:
        """Called once, before training, with the scorer's weights there and K candidates a window."""

    def __call__(self, evidence: Evidence) -> Tensor:
        raise NotImplementedError


def check_knobs(temperature: float, continuation: float, unhelped_weight: float, null_similarity: float | None) -> None:
    """The knobs that several objectives have: an error names the one that is out of range."""
    require(temperature > 0, "objective.temperature", temperature, "must be above 0")
    require(0 <= continuation < 1, "objective.continuation", continuation, "at least 0 and below 1")
    require(0 <= unhelped_weight <= 1, "objective.unhelped_weight", unhelped_weight, "from 0 to 1")
    within = null_similarity is None or -1 <= null_similarity <= 1
    require(within, "objective.null_similarity", null_similarity, "null, or a cosine from -1 to 1")


def spread(values_BK: Tensor, columns_BK: Tensor, width: int) -> Tensor:
    """Put each window's K values into their columns of a zero matrix of `width` columns: values_BU."""
    return torch.zeros(len(values_BK), width, dtype=values_BK.dtype, device=values_BK.device).scatter_add(
        1, columns_BK, values_BK
    )


def window_weights(reading: Any, unhelped_weight: float) -> Tensor | float:
    """weight_S: 1 where a candidate makes the target likelier than no passage does, else `unhelped_weight`."""
    if unhelped_weight == 1:
        return 1.0
    helped_S = reading.loglik_SK.amax(1) > reading.null_S
    return torch.where(helped_S, 1.0, unhelped_weight)
