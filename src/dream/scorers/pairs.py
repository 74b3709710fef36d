"""Log-likelihoods of (window, passage) pairs: from the cache where it has them, otherwise by the model, each pair once.

Shapes: P pairs of this process, M pairs of all processes that ask together.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dream.scorers.loglik_cache import LoglikCache
from dream.utils import ranks

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (windows_P, passages_P) -> loglik_P


def find_or_score(
    open_cache: Callable[[], LoglikCache] | None, score: Score, pairs_P2: Tensor, on_all_ranks: bool
) -> np.ndarray:
    """loglik_P float32 of the pairs. A pair that occurs several times has one value.

    A model's value depends, by rounding, on the pairs that are scored together. With `on_all_ranks`, it must not also
    depend on which rank is faster. So rank 0 alone reads and writes the cache, and the first rank that asks for a pair
    scores it for all.

    Args:
        open_cache: returns the opened cache; None: there is no cache.
        score: the model.
        pairs_P2: (window, passage) ids, on the device on which the ranks exchange tensors.
        on_all_ranks: all ranks of the job call this together, each with P pairs.
    """
    count, rank = len(pairs_P2), ranks.rank() if on_all_ranks else 0
    gather = partial(ranks.gather, own_first=False) if on_all_ranks else (lambda rows: rows)
    pairs_M2 = gather(pairs_P2).cpu().numpy()
    windows_M, passages_M = pairs_M2.T
    cache = open_cache() if open_cache and rank == 0 else None
    loglik_M = cache.find(windows_M, passages_M) if cache else np.full(len(pairs_M2), np.nan, dtype=np.float32)
    if on_all_ranks:
        ranks.share([torch.from_numpy(loglik_M)])
    _, first, same_M = np.unique(pairs_M2, axis=0, return_index=True, return_inverse=True)
    new = np.sort(first[np.isnan(loglik_M[first])])
    own = slice(rank * count, (rank + 1) * count)
    own_new = new[(new >= own.start) & (new < own.stop)]
    loglik_M[own_new] = score(windows_M[own_new], passages_M[own_new])
    loglik_M = gather(torch.from_numpy(loglik_M[own]).to(pairs_P2.device)).cpu().numpy()
    if cache:
        cache.add(windows_M[new], passages_M[new], loglik_M[new])
    return loglik_M[first[same_M.ravel()]][own]
