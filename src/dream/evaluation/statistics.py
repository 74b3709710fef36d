"""Confidence intervals and significance tests over queries, and over seeds if a system has several.

Shape suffixes: M systems, S seeds (runs) of a system, Q labelled queries, R resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dream.utils.errors import require

CHUNK_CELLS = 4_000_000  # cells of (resamples, queries) in memory at once: 32 MB


@dataclass(frozen=True)
class Sampling:
    """How intervals and p-values are sampled.

    Args:
        resamples: number of resamples of the bootstrap and of the randomisation test.
        confidence: share of the resampled means inside an interval, between 0 and 1.
        seed: seed of the random draws.
    """

    resamples: int
    confidence: float
    seed: int

    def __post_init__(self) -> None:
        is_count = isinstance(self.resamples, int) and self.resamples > 0
        require(is_count, "statistics.resamples", self.resamples, "at least 1")
        is_share = isinstance(self.confidence, float) and 0 < self.confidence < 1
        require(is_share, "statistics.confidence", self.confidence, "between 0 and 1")


@dataclass(frozen=True)
class Difference:
    """The difference between a system and the baseline.

    Attributes:
        mean: difference of the means; positive if the system is better.
        interval: confidence interval of `mean`.
        p: two-sided p-value of the randomisation test.
        wins: queries on which the system is better.
        losses: queries on which the system is worse.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    wins: int
    losses: int


def intervals(values: list[np.ndarray], sampling: Sampling) -> list[tuple[float, float]]:
    """Percentile bootstrap interval of the mean of each of M systems' values_SQ (Efron & Tibshirani 1993, ch. 13).

    Queries are drawn with replacement, the same queries for all systems. If a system has several seeds, these are also
    drawn with replacement. The interval then covers other runs as well as other queries.
    """
    draw = np.random.default_rng(sampling.seed)
    means_MR = np.empty((len(values), sampling.resamples))
    for chosen in _chunks(sampling.resamples, values[0].shape[1]):
        weight_RQ = _weights(draw, len(chosen), values[0].shape[1])
        for system, values_SQ in enumerate(values):
            seeds_RS = _weights(draw, len(chosen), len(values_SQ)) if len(values_SQ) > 1 else np.ones((len(chosen), 1))
            means_MR[system, chosen] = (weight_RQ @ values_SQ.T * seeds_RS).sum(1)
    tail = (1 - sampling.confidence) / 2
    low_M, high_M = np.quantile(means_MR, [tail, 1 - tail], axis=1)
    return list(zip(low_M.tolist(), high_M.tolist(), strict=True))


def randomisation_p(difference_MQ: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Two-sided p-value of the paired randomisation test (Smucker, Allan & Carterette 2007), for each of M systems.

    If two systems are equally good, each query's difference has either sign with the same probability. p is the share
    of random sign patterns whose mean difference is at least as large as the observed one. The observed signs count as
    one of the patterns, so p is never 0.
    """
    draw = np.random.default_rng(sampling.seed)
    queries = difference_MQ.shape[1]
    observed_M = np.abs(difference_MQ.mean(1)) - 1e-12  # tolerance, because the order of summation changes last digits
    extreme_M = np.zeros(len(difference_MQ), dtype=np.int64)
    for chosen in _chunks(sampling.resamples, queries):
        signs_RQ = draw.integers(0, 2, (len(chosen), queries), dtype=np.int8) * 2.0 - 1
        extreme_M += (np.abs(signs_RQ @ difference_MQ.T) / queries >= observed_M).sum(0)
    return (extreme_M + 1) / (sampling.resamples + 1)


def compare(values: list[np.ndarray], baseline_SQ: np.ndarray, sampling: Sampling) -> list[Difference]:
    """Compare each system's values_SQ with the baseline's by query: paired bootstrap (Sakai 2006), randomisation test.

    If a system has as many seeds as the baseline, seeds are paired in order. If the system has only one, it is compared
    with each seed of the baseline, so that the interval also covers other runs of the baseline. Otherwise each seed is
    compared with the baseline's mean over seeds.
    """
    differences = [
        values_SQ - (baseline_SQ if len(values_SQ) in (1, len(baseline_SQ)) else baseline_SQ.mean(0))
        for values_SQ in values
    ]
    by_query_MQ = np.stack([difference_SQ.mean(0) for difference_SQ in differences])
    wins_M, losses_M = (by_query_MQ > 1e-12).sum(1), (by_query_MQ < -1e-12).sum(1)
    return [
        Difference(float(by_query_Q.mean()), interval, float(p), int(wins), int(losses))
        for by_query_Q, interval, p, wins, losses in zip(
            by_query_MQ,
            intervals(differences, sampling),
            randomisation_p(by_query_MQ, sampling),
            wins_M,
            losses_M,
            strict=True,
        )
    ]


def _weights(draw: np.random.Generator, rows: int, items: int) -> np.ndarray:
    """(rows, items): share of each item among `items` draws with replacement. Each row sums to 1."""
    drawn = draw.integers(0, items, (rows, items)) + np.arange(rows)[:, None] * items
    return np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items) / items


def _chunks(resamples: int, queries: int) -> Iterator[np.ndarray]:
    rows = max(1, CHUNK_CELLS // queries)
    for start in range(0, resamples, rows):
        yield np.arange(start, min(start + rows, resamples))
