"""KL divergence to a posterior that measures how much the loss increases if a passage is left out of the prompt.

Shapes: S scored windows, K candidates of a window.
"""

from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.kl_posterior import KLPosterior
from dream.utils.errors import require


def loss_without(loglik_without_SK: Tensor) -> Tensor:
    """nats_sk = -log p_LM(y | d_1..d_K without d_k, x): the loss of the target if passage k is left out.

    The target distribution is the softmax of this loss over k. The loss with all passages is the same for every k, so
    subtracting it would not change the softmax.
    Source: LOOP of Atlas (Izacard et al. 2022, §2.2), where the reader masks passage k in its decoder.

    Args:
        loglik_without_SK: log-likelihood of the target in nats, with all candidates except k in one prompt.
    """
    return -loglik_without_SK


class LeaveOneOut(KLPosterior):
    """`KLPosterior` with the softmax of `loss_without` as posterior. It needs K prompts of K - 1 passages per window.

    Args: as for `KLPosterior`. `null_similarity` must be None, because there is no prompt without passages.
    """

    def prepare(self, scorer, store, k: int) -> None:
        """Raises ConfigError if the model cannot read K - 1 passages at once, or if `null_similarity` is given."""
        require(self.null_similarity is None, "objective.null_similarity", self.null_similarity, "leave_one_out has no "
                "prompt without passages: choose null")  # fmt: skip
        scorer.require_room(store, k - 1, "candidates.k", k)

    def candidate_loglik(self, candidates: Candidates) -> Tensor:
        return loss_without(candidates.scores.without_SK)
