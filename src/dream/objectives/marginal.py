"""Likelihood of the target with the candidate as a latent variable.

Shapes: S scored windows, K candidates of a window, T target tokens (padded).
"""

import torch
from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.mixed import MixedObjective


def marginal(log_p_SK: Tensor, loglik_SKT: Tensor, mask_ST: Tensor) -> Tensor:
    """loss_s = -mean_t log Σ_k p_k · p_LM(y_t | y_<t, d_k, x), in nats per token.

    Source: REALM (Guu et al. 2020, eq. 1) and EMDR2 (Sachan et al. 2021, eq. 5). Here each token has its own sum over
    passages.

    Args:
        log_p_SK: log of the retriever's distribution over candidates, with gradient.
        loglik_SKT: log-likelihood of each target token, in nats.
        mask_ST: true for tokens, false for padding. The mean is over tokens.
    """
    log_p_ST = torch.logsumexp(log_p_SK[:, :, None] + loglik_SKT, dim=1)
    return -(log_p_ST * mask_ST).sum(1) / mask_ST.sum(1)


class Marginal(MixedObjective):
    """The loss of a scored window is `marginal`, in nats per target token, with p = softmax(sim / temperature).

    Args: as for `MixedObjective`. With `null_similarity`, "no passage" is an additional candidate, with this cosine.
    """

    def window_losses(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        loglik_SKT, mask_ST = candidates.scores.token_loglik
        sim_SK, loglik_SK = candidates.sim_SK, loglik_SKT.sum(2)
        if self.null_similarity is not None:
            loglik_SKT = torch.cat([loglik_SKT, candidates.scores.null_token_loglik_ST[:, None]], dim=1)
            sim_SK = torch.cat([sim_SK, torch.full_like(sim_SK[:, :1], self.null_similarity)], dim=1)
        return marginal(torch.log_softmax(sim_SK / self.temperature, dim=1), loglik_SKT, mask_ST), loglik_SK
