"""Log-likelihoods of the targets of a step's windows given their candidates, by the frozen language model.

Shapes: S scored windows, K candidates of a window, U distinct candidates of the step, H heads, T tokens, R rows.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.scorers.attention.injection import Heads, InBatchAttention, Mass, WeightedAttention, injectable, plain
from dream.scorers.base import CausalScorer
from dream.store.ragged import pad_tokens
from dream.store.store import Store
from dream.utils.timing import Timer


class CandidateScores:
    """Log-likelihoods of S windows given their K candidates. Each property is computed on first use, then cached.

    The properties have no gradient. `weighted` and `in_batch` can be differentiated once by their weights.

    Args:
        scorer: the frozen language model.
        store: the store of windows and passages.
        window_ids_S: rows of the scored windows in the store's window table.
        candidate_ids_SK: passage ids of their candidates.
        timer: measures the time of scoring, under the name `score`.
    """

    def __init__(
        self, scorer: CausalScorer, store: Store, window_ids_S: Tensor, candidate_ids_SK: Tensor, timer: Timer
    ) -> None:
        self.scorer, self.store, self.timer = scorer, store, timer
        self.window_ids_S, self.candidate_ids_SK = window_ids_S, candidate_ids_SK

    @cached_property
    def loglik_SK(self) -> Tensor:
        """log p(target | candidate, context) in nats, summed over the tokens of the target."""
        with self.timer("score"):
            return self.scorer.loglik(self.store, self.window_ids_S, self.candidate_ids_SK, on_all_ranks=True)

    @cached_property
    def null_S(self) -> Tensor:
        """log p(target | context) in nats, without a passage."""
        with self.timer("score"):
            nothing_S1 = torch.full_like(self.window_ids_S, -1)[:, None]
            return self.scorer.loglik(self.store, self.window_ids_S, nothing_S1, on_all_ranks=True)[:, 0]

    @cached_property
    def token_loglik(self) -> tuple[Tensor, Tensor]:
        """(loglik_SKT of each target token in nats, 0 after the last; mask_ST: true for tokens)"""
        with self.timer("score"):
            return self.scorer.token_loglik(self.store, self.window_ids_S, self.candidate_ids_SK)

    @cached_property
    def null_token_loglik_ST(self) -> Tensor:
        """log p of each target token in nats, without a passage."""
        with self.timer("score"):
            nothing_S1 = torch.full_like(self.window_ids_S, -1)[:, None]
            return self.scorer.token_loglik(self.store, self.window_ids_S, nothing_S1)[0][:, 0]

    @cached_property
    def without_SK(self) -> Tensor:
        """log p(target | all candidates except k in one prompt, context) in nats."""
        with self.timer("score"):
            return self.scorer.loglik_without(self.store, self.window_ids_S, self.candidate_ids_SK)

    def weighted(self, weights_SK: Tensor, heads: Heads, mass: Mass) -> Tensor:
        """loglik_S: mean log p of the target's tokens, in nats, if `heads` weight their attention to passages.

        The prompt is all candidates, then the context, then the target. Only rows that predict target tokens use the
        weights. Earlier rows are computed as usual and without gradient. Windows are processed one after another with
        their gradients, so only the activations of one window are in memory.

        Args:
            weights_SK: weight of each candidate, with gradient; each row sums to 1.
            heads: the heads that use the weights, by layer.
            mass: sum of a row's attention to all passages: see `reweigh`.
        """
        self.scorer.require_gradient()
        with self.timer("score"), self.scorer.no_autocast(), injectable(self.scorer.model):
            loglik = lambda row, weights_K: self._weighted(row, weights_K, heads, mass)  # noqa: E731
            return _differentiable(loglik, weights_SK, self.scorer.device)

    def in_batch(self, weights_SU: Tensor, distinct_U: Tensor, value_norm: bool) -> Tensor:
        """loglik_S: mean log p of the target's tokens, in nats, if every row of the window also attends to U texts.

        Each text is read once, separately and without gradient. The window's tokens have the positions that they would
        have after one passage as long as the longest text.

        Args:
            weights_SU: weight of each text, with gradient; each row sums to 1.
            distinct_U: passage ids of the texts.
            value_norm: see `InBatchAttention`.
        """
        self.scorer.require_gradient()
        if not len(weights_SU):
            return weights_SU.sum(1)
        with self.timer("score"), self.scorer.no_autocast():
            texts_of_layer, mask_UT = self._read_texts(distinct_U)
            attend = lambda weights_U: InBatchAttention(texts_of_layer, mask_UT, weights_U, value_norm)  # noqa: E731
            with injectable(self.scorer.model):
                loglik = lambda row, weights_U: self._in_batch(row, attend(weights_U))  # noqa: E731
                return _differentiable(loglik, weights_SU, self.scorer.device)

    def _weighted(self, row: int, weights_K: Tensor, heads: Heads, mass: Mass) -> Tensor:
        scorer = self.scorer
        given, scored = self.store.scored_tokens(int(self.window_ids_S[row]))
        passages = [scorer.passage(self.store, passage_id) for passage_id in self.candidate_ids_SK[row].tolist()]
        ids_T = torch.from_numpy(scorer.prompt.join_passages(passages, given, scored)).to(scorer.device)
        window = ids_T[len(ids_T) - len(scored) - 1 :]  # the row that predicts the first scored token, and these tokens
        memory, owner_T = read_passages(scorer, passages, ids_T[: len(ids_T) - len(window)])
        attend = WeightedAttention(owner_T, weights_K, heads, mass)
        return self._mean_loglik(window, len(scored), past_key_values=memory, use_cache=True, attend=attend)

    def _in_batch(self, row: int, attend: InBatchAttention) -> Tensor:
        scorer = self.scorer
        given, scored = self.store.scored_tokens(int(self.window_ids_S[row]))
        nothing = np.empty(0, dtype=np.int64)
        window = torch.from_numpy(scorer.prompt.join(nothing, given, scored)).to(scorer.device)
        places = torch.arange(len(window) - 1, device=scorer.device) + attend.mask_UT.shape[1]
        return self._mean_loglik(window, len(scored), position_ids=places[None], use_cache=False, attend=attend)

    def _mean_loglik(self, window_T: Tensor, targets: int, **how: Any) -> Tensor:
        self.scorer.forwards += 1
        logits_TV = self.scorer.model(input_ids=window_T[None, :-1], **how).logits[0, -targets:]
        logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
        return logits_TV.log_softmax(1).gather(1, window_T[-targets:, None]).mean()

    @torch.no_grad()
    def _read_texts(self, passage_ids_U: Tensor) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor]:
        """(keys and values of each attention layer, of shape (U, heads, T, D); mask_UT: true for tokens)"""
        scorer = self.scorer
        texts = [scorer.prompt.text(scorer.passage(self.store, passage_id)) for passage_id in passage_ids_U.tolist()]
        batch = pad_tokens(texts, 0).to(scorer.device)
        rows = max(1, scorer.token_budget // batch.ids_BT.shape[1])
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for ids_PT in batch.ids_BT.split(rows):
            scorer.forwards += 1
            for at, layer in enumerate(
                scorer.model.base_model(input_ids=ids_PT, use_cache=True).past_key_values.layers
            ):
                if getattr(layer, "keys", None) is not None:  # a layer without attention has none
                    parts.setdefault(at, []).append((layer.keys, layer.values))
        whole = {at: (torch.cat([key for key, _ in read]), torch.cat([value for _, value in read]))
                 for at, read in parts.items()}  # fmt: skip
        return whole, batch.mask_BT


@torch.no_grad()
def read_passages(scorer: CausalScorer, passages: list[np.ndarray], ids_T: Tensor) -> tuple[Any, Tensor]:
    """(keys and values of ids_T; owner_T: the passage of each token). Call it inside `injectable`.

    Args:
        passages: token ids of the passages.
        ids_T: a prompt that begins with these passages, or its first tokens.
    """
    owner_T = torch.from_numpy(scorer.prompt.owners(passages, len(ids_T))).to(scorer.device)
    memory = scorer.model.base_model(input_ids=ids_T[None], use_cache=True, attend=plain).past_key_values
    return memory, owner_T


def _differentiable(loglik: Callable[[int, Tensor], Tensor], weights_SK: Tensor, device: torch.device) -> Tensor:
    """loglik_S, row by row from loglik(row, weights_K), with gradients. It can be differentiated once."""
    values, gradients = [], []
    for row, weights_K in enumerate(weights_SK.detach()):
        leaf = weights_K.to(device, copy=True).requires_grad_()
        with torch.enable_grad():
            value = loglik(row, leaf)
        gradients.append(torch.autograd.grad(value, leaf)[0])
        values.append(value.detach())
    if not values:
        return weights_SK.sum(1)
    value_S, gradient_SK = torch.stack(values).to(weights_SK), torch.stack(gradients).to(weights_SK)
    # The second term is 0, but it has the gradient that was computed above.
    return value_S + ((weights_SK - weights_SK.detach()) * gradient_SK).sum(1)
