"""KL against a posterior of what is lost when a passage is left out of the prompt."""

from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.kl_posterior import KLPosterior
from dream.utils.errors import require


def loss_without(loglik_without_SK: Tensor) -> Tensor:
    """nats_SK whose softmax over k is the target: the loss of the target where all candidates but k are read.

    The loss with all of them is the same for every k, so that the softmax of the increase is the same. Source: LOOP of
    Atlas (Izacard et al. 2022, §2.2), whose reader masks passage k in its decoder.
    """
    return -loglik_without_SK


class LeaveOneOut(KLPosterior):
    """The target of `kl_posterior` from K prompts of K - 1 passages each, in place of K prompts of one."""

    def prepare(self, scorer, store, k: int) -> None:
        require(self.null_similarity is None, "objective.null_similarity", self.null_similarity, "leave_one_out has no "
                "prompt without passages: choose null")  # fmt: skip
        scorer.require_room(store, k - 1, "candidates.k", k)

    def candidate_loglik(self, candidates: Candidates) -> Tensor:
        return loss_without(candidates.scores.without_SK)
