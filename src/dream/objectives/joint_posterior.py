"""KL divergence to a posterior that combines the language model with the encoder as it was before training.

Shapes: S scored windows, K candidates of a window.
"""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.kl_posterior import KLPosterior
from dream.scorers.base import CausalScorer
from dream.store.store import Store
from dream.utils.errors import require

TARGETS = ("posterior", "best_passage", "own_passage")


class JointPosterior(KLPosterior):
    """`KLPosterior` with the posterior softmax_k(loglik_k / lm_temperature + cosine_k / untrained_temperature).

    cosine_k is the similarity of the context and candidate k by the encoder before training. An encoder that knows more
    than the language model keeps what it knows, and learns only what the language model adds. Both scores are added as
    logarithms: a product of experts (Hinton 2002, eq. 1).

    With `best_passage`, the target is the candidate that the posterior prefers. Often it is not the passage that a
    question was written about, because another one answers the question better.
    Source: Gecko (Lee et al. 2024, arXiv 2403.20327, §3.2), where a large language model alone chooses.

    With `own_passage`, the target is the passage that the question was written about, and a question counts only if the
    posterior prefers this passage.
    Source: round-trip consistency (Alberti et al. 2019, §2), for retrieval in Promptagator (Dai et al. 2022, §3.2),
    where the retriever alone decides.

    Args: as for `KLPosterior`, and
        untrained_temperature: temperature of the cosines of the encoder before training.
        target: `posterior`, `best_passage` or `own_passage`, as above.

    Raises:
        ConfigError: a value is out of its range, or `null_similarity` is given: "no passage" has no cosine.
    """

    needs_untrained = True

    def __init__(
        self, untrained_temperature: float, target: Literal["posterior", "best_passage", "own_passage"], **settings: Any
    ) -> None:
        super().__init__(**settings)
        key = "objective.untrained_temperature"
        require(untrained_temperature > 0, key, untrained_temperature, "must be above 0")
        require(self.null_similarity is None, "objective.null_similarity", self.null_similarity, "joint_posterior has "
                "no cosine for it: choose null")  # fmt: skip
        require(target in TARGETS, "objective.target", target, f"choose one of {', '.join(TARGETS)}")
        forward = target == "posterior" or self.direction == "forward"
        require(forward, "objective.direction", self.direction, f"with objective.target={target} choose forward")
        alone = target != "own_passage" or self.continuation == 0
        require(alone, "objective.continuation", self.continuation, "with objective.target=own_passage choose 0: the "
                "continuation of a question is its own passage, too")  # fmt: skip
        self.target = target
        self.untrained_temperature = untrained_temperature

    def prepare(self, scorer: CausalScorer, store: Store, k: int) -> None:
        """Raises ConfigError if the target is the passage of a question, and there are no questions."""
        fits = self.target != "own_passage" or store.questions is not None
        require(fits, "objective.target", self.target, "needs questions: set data.questions, or choose another target")

    def _target(self, candidates: Candidates, loglik_SK: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        posterior_SK, null_S0, weights = super()._target(candidates, loglik_SK)
        if self.target == "posterior":
            return posterior_SK, null_S0, weights
        target_S = posterior_SK.argmax(1)
        if self.target == "own_passage":
            weights = weights * (target_S == 0)  # the mixture of candidates puts the passage of the question first
            target_S = target_S.new_zeros(len(target_S))
        return F.one_hot(target_S, posterior_SK.shape[1]).to(posterior_SK), null_S0, weights

    def _posterior(self, candidates: Candidates, loglik_SK: Tensor) -> tuple[Tensor, Tensor]:
        assert candidates.untrained_sim_SK is not None
        untrained_SK = candidates.untrained_sim_SK / self.untrained_temperature
        return super()._posterior(candidates, loglik_SK + self.lm_temperature * untrained_SK)
