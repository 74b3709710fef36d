"""KL divergence to a posterior that combines the language model with the encoder as it was before training.

Shapes: S scored windows, K candidates of a window.
"""

from typing import Any

from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.kl_posterior import KLPosterior
from dream.utils.errors import require


class JointPosterior(KLPosterior):
    """`KLPosterior` with the posterior softmax_k(loglik_k / lm_temperature + cosine_k / untrained_temperature).

    cosine_k is the similarity of the context and candidate k by the encoder before training. An encoder that knows more
    than the language model keeps what it knows, and learns only what the language model adds. Both scores are added as
    logarithms: a product of experts (Hinton 2002, eq. 1).

    Args: as for `KLPosterior`, and
        untrained_temperature: temperature of the cosines of the encoder before training.

    Raises:
        ConfigError: a value is out of its range, or `null_similarity` is given: "no passage" has no cosine.
    """

    needs_untrained = True

    def __init__(self, untrained_temperature: float, **settings: Any) -> None:
        super().__init__(**settings)
        key = "objective.untrained_temperature"
        require(untrained_temperature > 0, key, untrained_temperature, "must be above 0")
        require(self.null_similarity is None, "objective.null_similarity", self.null_similarity, "joint_posterior has "
                "no cosine for it: choose null")  # fmt: skip
        self.untrained_temperature = untrained_temperature

    def _posterior(self, candidates: Candidates, loglik_SK: Tensor) -> tuple[Tensor, Tensor]:
        assert candidates.untrained_sim_SK is not None
        untrained_SK = candidates.untrained_sim_SK / self.untrained_temperature
        return super()._posterior(candidates, loglik_SK + self.lm_temperature * untrained_SK)
