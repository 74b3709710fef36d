"""Scores pairs one by one, padded. It is used for models that cannot share the computation of a passage.

Shapes: P pairs, T tokens, R rows whose logits are kept, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.scorers.batching import NO_TARGET, PairBatching, left_aligned


class Padding:
    """Scores batches of padded pairs.

    Sequences are padded on the right. With causal attention, no token attends to later tokens. So models of any family
    need no mask and no position ids, and the fast causal kernels can be used. Pairs of similar length are scored
    together. The padded length of a pair depends only on that pair, so in float32 on a CPU its log-likelihood is
    bitwise the same in every batch. In bfloat16, torch may choose another kernel for forwards of very few pairs. Their
    log-likelihoods then differ by rounding.

    Args:
        model: a causal language model.
        batching: how pairs are padded and grouped.
        compiles: whether to compile the model.
    """

    def __init__(self, model: Any, batching: PairBatching, compiles: bool) -> None:
        self.model, self.batching = model, batching
        self.keeps_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._sums, self._rows = (
            torch.compile(function, dynamic=True) if compiles else function
            for function in (self._pair_loglik, self._row_loglik)
        )

    def scores(self, sequences: list[np.ndarray], targets: list[int], shared: list[int], by_token: bool,
               token_budget: int) -> Iterator[tuple[np.ndarray, Tensor]]:  # fmt: skip
        """Yield (numbers of the pairs, their loglik_P or loglik_PT) of each forward. Nothing is shared."""
        forward = self._rows if by_token else self._sums
        longest = max(self.batching.longest_target, max(targets))  # a query to rank may be longer than all windows
        batching = PairBatching(self.batching.most_tokens, longest)
        lengths_P = np.array([len(sequence) for sequence in sequences])
        for pairs in batching.forwards(lengths_P, token_budget):
            # A single row would be compiled a second time: inductor treats a size of 1 as a constant.
            rows = pairs if len(pairs) > 1 else pairs.repeat(2)
            batch = batching.pad([sequences[pair] for pair in rows], [targets[pair] for pair in rows])
            scored = forward(*batch.to(self.model.device))[: len(pairs)]
            yield pairs, left_aligned(scored, batch.labels_PR[: len(pairs)], max(targets)) if by_token else scored

    def _pair_loglik(self, ids_PT: Tensor, rows_R: Tensor, labels_PR: Tensor) -> Tensor:
        """loglik_P. It is compiled as one graph, so float32 log-probabilities of the vocabulary are never in memory."""
        return self._row_loglik(ids_PT, rows_R, labels_PR).sum(1)

    def _row_loglik(self, ids_PT: Tensor, rows_R: Tensor, labels_PR: Tensor) -> Tensor:
        """loglik_PR of the labels, 0 for the label `NO_TARGET`."""
        if self.keeps_rows:
            logits_PRV = self.model(input_ids=ids_PT, logits_to_keep=rows_R, use_cache=False).logits
        else:
            logits_PRV = self.model(input_ids=ids_PT, use_cache=False).logits[:, rows_R]
        is_target_PR = labels_PR != NO_TARGET
        chosen_PR = logits_PRV.gather(2, (labels_PR * is_target_PR)[..., None])[..., 0].float()
        return (chosen_PR - logits_PRV.float().logsumexp(2)) * is_target_PR
