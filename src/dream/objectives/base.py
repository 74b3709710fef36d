"""What the module hands to an objective, and what an objective returns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dream.utils.errors import require

if TYPE_CHECKING:
    from dream.scorers.base import CausalScorer
    from dream.scorers.candidate_scores import CandidateScores
    from dream.store.store import Store


@dataclass
class Candidates:
    """The U distinct candidates of a step, compared with its B windows. The first S windows may be scored by the LM.

    Attributes:
        sim_BU: cosine of context b and candidate u by the current encoder, with gradient.
        columns_SK: for each scored window, the columns of its own K candidates in U.
        allowed_BU: false if u comes from the window's own document.
        ids_U: passage ids.
        scores: log-likelihoods by the frozen LM, computed on first use.
    """

    sim_BU: Tensor
    columns_SK: Tensor
    allowed_BU: Tensor
    ids_U: Tensor
    scores: "CandidateScores"

    @property
    def sim_SK(self) -> Tensor:
        """Similarities of each scored window with its own candidates."""
        return self.sim_BU[: len(self.columns_SK)].gather(1, self.columns_SK)


@dataclass
class LossInputs:
    """The inputs of an objective for B windows. Inputs that the objective does not need are None.

    Attributes:
        same_document_BB: whether two windows come from the same document.
        candidates: see `Candidates`.
        continuation_sim_BB: cosine of context b and the continuation of window c, with gradient.
    """

    same_document_BB: Tensor
    candidates: Candidates | None
    continuation_sim_BB: Tensor | None


@dataclass
class LossOutput:
    """The result of an objective.

    Attributes:
        loss: scalar with gradient, in nats.
        candidate_loglik_SK: per-candidate log-likelihoods if the loss used them, in nats up to a constant of each
            window: the LM posterior is their softmax. Logged, never trained on.
    """

    loss: Tensor
    candidate_loglik_SK: Tensor | None = None


class Objective:
    """Turns `LossInputs` into a scalar loss. To add one, write one file and one YAML.

    Attributes:
        needs_candidates: whether it uses candidates, and with them the language model.
        needs_continuation: whether it uses the windows' continuations.
        temperature: of the retriever's softmax over cosines.
        lm_temperature: of the posterior's softmax, if the objective has a posterior.

    Example:
        >>> class Margin(Objective):
        ...     needs_continuation = True
        ...
        ...     def __init__(self, temperature: float) -> None:
        ...         self.temperature = temperature
        ...
        ...     def __call__(self, inputs: LossInputs) -> LossOutput:
        ...         return LossOutput(-inputs.continuation_sim_BB.diagonal().mean())
    """

    needs_candidates: bool = False
    needs_continuation: bool = False
    temperature: float
    lm_temperature: float = 1.0

    def prepare(self, scorer: "CausalScorer", store: "Store", k: int) -> None:
        """Called once before training, after the scorer has its weights. `k`: candidates of a window."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        raise NotImplementedError


def check_knobs(temperature: float, continuation: float, unhelped_weight: float, null_similarity: float | None) -> None:
    """Check the settings that several objectives share. The error names the one that is out of range."""
    require(temperature > 0, "objective.temperature", temperature, "must be above 0")
    require(0 <= continuation < 1, "objective.continuation", continuation, "at least 0 and below 1")
    require(0 <= unhelped_weight <= 1, "objective.unhelped_weight", unhelped_weight, "from 0 to 1")
    within = null_similarity is None or -1 <= null_similarity <= 1
    require(within, "objective.null_similarity", null_similarity, "null, or a cosine from -1 to 1")


def spread(values_BK: Tensor, columns_BK: Tensor, width: int) -> Tensor:
    """values_BU: each window's K values in their columns of a zero matrix with `width` columns."""
    return torch.zeros(len(values_BK), width, dtype=values_BK.dtype, device=values_BK.device).scatter_add(
        1, columns_BK, values_BK
    )


def window_weights(scores: "CandidateScores", unhelped_weight: float) -> Tensor | float:
    """weight_S: 1 if some candidate makes the target likelier than no passage does, else `unhelped_weight`."""
    if unhelped_weight == 1:
        return 1.0
    helped_S = scores.loglik_SK.amax(1) > scores.null_S
    return torch.where(helped_S, 1.0, unhelped_weight)
