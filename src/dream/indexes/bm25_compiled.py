"""The search of BM25 in compiled code, for many queries at once. It needs numba, an extra of this project."""

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

BLOCK = 256  # rows whose highest score is looked at first


def compiled(function: Callable) -> Callable:
    """The function, compiled at its first call. The compiled code is kept on the disk for the next process."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no folder that it can write
        return njit(nogil=True)(function)


@compiled
def _take_best(scores_N: Any, best_scores_K: Any, best_rows_K: Any) -> None:
    # The bits of positive floats, read as integers, have the same order, and their maximum is computed faster.
    bits_N = scores_N.view(np.int32)
    k, least = len(best_rows_K), np.int32(0)
    best = [(np.float32(0), np.int64(0)) for _ in range(0)]  # numba takes the type of the heap's items from this
    for start in range(0, len(bits_N), BLOCK):
        block = bits_N[start : start + BLOCK]
        highest = np.int32(0)
        for place in range(len(block)):
            highest = max(highest, block[place])
        if highest <= least:
            continue
        for place in range(len(block)):
            if block[place] > least:
                item = (scores_N[start + place], np.int64(-(start + place)))
                if len(best) < k:
                    heapq.heappush(best, item)
                else:
                    heapq.heapreplace(best, item)
                if len(best) == k:
                    least = bits_N[-best[0][1]]
    for place in range(len(best) - 1, -1, -1):
        score, negative_row = heapq.heappop(best)
        best_scores_K[place], best_rows_K[place] = score, -negative_row


@compiled
def best_rows(
    rows: Any, scores: Any, starts: Any, ends: Any, counts: Any, bounds: Any, first: int, every: int,
    scores_N: Any, best_scores_QK: Any, best_rows_QK: Any,
) -> None:  # fmt: skip
    """Write the best rows of queries, and their scores; equal scores by lower row. Sums are those of `BM25Index`.

    All queries of a thread are searched in one call, because each call has to wait for Python's lock.

    Args:
        rows, scores: rows and scores of all terms (int32 and float32).
        starts, ends, counts: of the queries' terms: where their rows are, and how often the query has the term.
        bounds: query q has the terms from bounds[q] to bounds[q + 1] - 1.
        first, every: the queries to search are `first`, `first` + `every`, …
        scores_N: float32 zeros; they are zeros again afterwards.
        best_scores_QK, best_rows_QK: where the result is written. If fewer rows have a score, the last places are kept.
    """
    # Slices and unsigned places: otherwise numba checks each place for being below 0, and the loops are not vectorised.
    for query in range(first, len(bounds) - 1, every):
        for term in range(bounds[query], bounds[query + 1]):
            rows_P, scores_P = rows[starts[term] : ends[term]], scores[starts[term] : ends[term]]
            count = np.float32(counts[term])
            for place in range(len(rows_P)):
                scores_N[np.uint32(rows_P[place])] += scores_P[place] * count
        _take_best(scores_N, best_scores_QK[query], best_rows_QK[query])
        scores_N[:] = 0
