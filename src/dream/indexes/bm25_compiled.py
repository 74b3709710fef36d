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
def best_rows(
    rows: Any, scores: Any, starts: Any, ends: Any, counts: Any, scores_N: Any, best_scores_K: Any, best_rows_K: Any
) -> None:
    """Write the best rows of a query, and their scores; equal scores by lower row. Sums are those of `BM25Index`.

    Args:
        rows, scores: rows and scores of all terms (int32 and float32).
        starts, ends, counts: of the query's terms: where their rows are, and how often the query has the term.
        scores_N: float32 zeros; they are zeros again afterwards.
        best_scores_K, best_rows_K: where the result is written. If fewer rows have a score, the last places are kept.
    """
    # Slices and unsigned places: otherwise numba checks each place for being below 0, and the loops are not vectorised.
    for term in range(len(starts)):
        rows_P, scores_P = rows[starts[term] : ends[term]], scores[starts[term] : ends[term]]
        count = np.float32(counts[term])
        for place in range(len(rows_P)):
            scores_N[np.uint32(rows_P[place])] += scores_P[place] * count
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
    scores_N[:] = 0
    for place in range(len(best) - 1, -1, -1):
        score, negative_row = heapq.heappop(best)
        best_scores_K[place], best_rows_K[place] = score, -negative_row
