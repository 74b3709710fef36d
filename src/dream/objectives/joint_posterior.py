"""KL divergence to a posterior that combines the language model with the encoder as it was before training.

Shapes: S scored windows, K candidates of a window.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.kl_posterior import KLPosterior
from dream.scorers.base import CausalScorer
from dream.store.store import Store
from dream.utils.errors import require

TARGETS = ("posterior", "own_passage")


class JointPosterior(KLPosterior):
    """`KLPosterior` with the posterior softmax_k(loglik_k / lm_temperature + cosine_k / untrained_temperature).

    cosine_k is the similarity of the context and candidate k by the encoder before training. An encoder that knows more
    than the language model keeps what it knows, and learns only what the language model adds. Both scores are added as
    logarithms: a product of experts (Hinton 2002, eq. 1).

    The posterior can also be a filter of questions: then the target is the passage that the question was written about,
    and a question counts only if the posterior prefers this passage. Other passages often answer a question that does
    not count.
    Source of the filter: round-trip consistency (Alberti et al. 2019, §2), for retrieval in Promptagator (Dai et al.
    2022, §3.2), where the retriever alone decides.

    Args: as for `KLPosterior`, and
        untrained_temperature: temperature of the cosines of the encoder before training.
        target: `posterior`, or `own_passage`: the passage of the question, if the posterior prefers it.

    Raises:
        ConfigError: a value is out of its range, or `null_similarity` is given: "no passage" has no cosine.
    """

    needs_untrained = True

    def __init__(
        self, untrained_temperature: float, target: Literal["posterior", "own_passage"], **settings: Any
    ) -> None:
        super().__init__(**settings)
        key = "objective.untrained_temperature"
        require(untrained_temperature > 0, key, untrained_temperature, "must be above 0")
        require(self.null_similarity is None, "objective.null_similarity", self.null_similarity, "joint_posterior has "
                "no cosine for it: choose null")  # fmt: skip
        require(target in TARGETS, "objective.target", target, f"choose {' or '.join(TARGETS)}")
        self.filters = target == "own_passage"
        forward = not self.filters or self.direction == "forward"
        require(forward, "objective.direction", self.direction, "with objective.target=own_passage choose forward")
        alone = not self.filters or self.continuation == 0
        require(alone, "objective.continuation", self.continuation, "with objective.target=own_passage choose 0: the "
                "continuation of a question is its own passage, too")  # fmt: skip
        self.untrained_temperature = untrained_temperature

    def prepare(self, scorer: CausalScorer, store: Store, k: int) -> None:
        """Raises ConfigError if the filter has no questions."""
        fits = not self.filters or store.questions is not None
        require(fits, "objective.target", "own_passage", "needs questions: set data.questions, or choose posterior")

    def _target(self, candidates: Candidates, loglik_SK: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        posterior_SK, null_S0, weights = super()._target(candidates, loglik_SK)
        if not self.filters:
            return posterior_SK, null_S0, weights
        own_SK = torch.zeros_like(posterior_SK)
        own_SK[:, 0] = 1  # the mixture of candidates puts the passage of the question first
        return own_SK, null_S0, weights * (posterior_SK.argmax(1) == 0)

    def _posterior(self, candidates: Candidates, loglik_SK: Tensor) -> tuple[Tensor, Tensor]:
        assert candidates.untrained_sim_SK is not None
        untrained_SK = candidates.untrained_sim_SK / self.untrained_temperature
        return super()._posterior(candidates, loglik_SK + self.lm_temperature * untrained_SK)
