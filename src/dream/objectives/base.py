"""The inputs and the output of an objective, and its base class.

Shapes: B windows of a step on this rank; A windows of the step on all ranks, first those of this rank; S windows of B
that the language model scores (the first ones); K candidates of a window; U distinct candidates of the step.
"""

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
    """The U distinct candidates of a step, on all ranks together, and their similarities with the B windows.

    Args:
        sim_BU: cosine of context b and candidate u by the current encoder, with gradient.
        columns_SK: for each scored window, the columns of its own K candidates in U, int64.
        allowed_BU: whether candidate u is in the softmax of window b: true for the candidates of a scored window, and
            where `negative_BU` is true.
        negative_BU: whether candidate u may be a negative of window b; false if it comes from the window's document, or
            is a near copy of a passage of this document.
        ids_U: passage ids.
        scored_columns_U: the columns of the candidates of all scored windows of the step, on all ranks, ascending.
        scores: log-likelihoods of the scored windows given their candidates, computed on first use.
        untrained_sim_SK: cosines of each scored window and its candidates by the encoder before training, without
            gradient; None if the objective does not need them.
    """

    sim_BU: Tensor
    columns_SK: Tensor
    allowed_BU: Tensor
    negative_BU: Tensor
    ids_U: Tensor
    scored_columns_U: Tensor
    scores: "CandidateScores"
    untrained_sim_SK: Tensor | None = None

    @property
    def sim_SK(self) -> Tensor:
        """Similarities of each scored window with its own candidates, with gradient."""
        return self.sim_BU[: len(self.columns_SK)].gather(1, self.columns_SK)


@dataclass
class LossInputs:
    """The inputs of an objective for B windows.

    Args:
        same_document_BA: whether two windows come from the same document, or from documents with near copies. These are
            known only if the objective needs candidates.
        candidates: the candidates; None if the objective does not need them.
        continuation_sim_BA: cosine of the context of window b and the continuation of window c, with gradient; None if
            the objective does not need it.
    """

    same_document_BA: Tensor
    candidates: Candidates | None
    continuation_sim_BA: Tensor | None


@dataclass
class LossOutput:
    """The result of an objective.

    The LM posterior of window s is softmax_k(candidate_loglik_sk / lm_temperature) (Bayes' rule with a uniform prior if
    the temperature is 1). The module logs it; the gradient comes from `loss` only.

    Args:
        loss: scalar with gradient, the mean loss of the windows. Its unit depends on the objective: nats (a divergence
            or a cross-entropy), or nats per target token.
        candidate_loglik_SK: log-likelihood of the target for each candidate, in nats, summed over the target's tokens,
            without gradient. A constant may be added to each row. None if the loss does not use log-likelihoods of
            single candidates, as in `attention`, `in_batch_attention` and `info_nce`.
        weights: weight_S of the scored windows' losses, 0 to 1; a number if all have the same.
    """

    loss: Tensor
    candidate_loglik_SK: Tensor | None = None
    weights: Tensor | float = 1.0


class Objective:
    """Computes a scalar loss from `LossInputs`, without side effects. To add an objective, write one file and one YAML.

    Attributes:
        needs_candidates: whether it uses candidates and the language model.
        needs_continuation: whether it uses the windows' continuations.
        needs_untrained: whether it uses the similarities of the encoder before training.
        temperature: temperature of the retriever's softmax over cosines.
        lm_temperature: temperature of the posterior's softmax, if the objective has a posterior.

    Example:
        >>> class Margin(Objective):
        ...     needs_continuation = True
        ...
        ...     def __init__(self, temperature: float) -> None:
        ...         self.temperature = temperature
        ...
        ...     def __call__(self, inputs: LossInputs) -> LossOutput:
        ...         return LossOutput(-inputs.continuation_sim_BA.diagonal().mean())
    """

    needs_candidates: bool = False
    needs_continuation: bool = False
    needs_untrained: bool = False
    temperature: float
    lm_temperature: float = 1.0

    def prepare(self, scorer: "CausalScorer", store: "Store", k: int) -> None:
        """Called once before training.

        Args:
            scorer: the scorer, with its weights.
            store: passages and windows.
            k: number of candidates of a window.

        Raises:
            ConfigError: the scorer or the store does not fit the settings.
        """

    def __call__(self, inputs: LossInputs) -> LossOutput:
        raise NotImplementedError


def check_knobs(temperature: float, continuation: float, unhelped_weight: float, null_similarity: float | None) -> None:
    """Check the settings that several objectives share.

    Raises:
        ConfigError: a setting is out of its range.
    """
    require(temperature > 0, "objective.temperature", temperature, "must be above 0")
    require(0 <= continuation < 1, "objective.continuation", continuation, "at least 0 and below 1")
    require(0 <= unhelped_weight <= 1, "objective.unhelped_weight", unhelped_weight, "from 0 to 1")
    within = null_similarity is None or -1 <= null_similarity <= 1
    require(within, "objective.null_similarity", null_similarity, "null, or a cosine from -1 to 1")


def spread(values_BK: Tensor, columns_BK: Tensor, width: int) -> Tensor:
    """values_BU: each window's K values in their columns of a matrix with U = `width` columns. Other columns are 0."""
    return torch.zeros(len(values_BK), width, dtype=values_BK.dtype, device=values_BK.device).scatter_add(
        1, columns_BK, values_BK
    )


def window_weights(scores: "CandidateScores", unhelped_weight: float) -> Tensor | float:
    """weight_S: 1 if a candidate makes the target more likely than no passage does, otherwise `unhelped_weight`.

    If `unhelped_weight` is 1, the result is the number 1, and no log-likelihood is computed.
    """
    if unhelped_weight == 1:
        return 1.0
    helped_S = scores.loglik_SK.amax(1) > scores.null_S
    return torch.where(helped_S, 1.0, unhelped_weight)
