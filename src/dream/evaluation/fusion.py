"""Fusion of BM25 with a dense ranking, and rankings whose first documents are ranked again.

Shape suffixes: Q labelled queries, R ranks, W weights, S samples. Reciprocal rank fusion is in `metrics`.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from dream.evaluation.metrics import DEPTH, Judgements, Ranking, per_query_metrics

WEIGHT = 0.35  # of the dense scores if a run has chosen none; the best weights on four dev splits are 0.2 to 0.6
STEP = 0.05  # difference between the weights that are tried if there are questions
SAMPLES = 200  # bootstrap samples of the questions
Normalisation = Literal["minmax", "zscore"]
NORMALISATIONS = get_args(Normalisation)


def hybrid(lexical: Ranking, dense: Ranking, weight: float | None, depth: int = DEPTH) -> Ranking:
    """Fuse BM25 with the dense ranking of a run, by a `weighted_sum` of their scores with `minmax`.

    Args:
        lexical: BM25's ranking.
        dense: the dense ranking of the same queries.
        weight: weight of the dense scores, if the run has chosen one: see `choose_weight`. None: `WEIGHT`.
        depth: documents to rank for each query.
    """
    return weighted_sum(lexical, dense, WEIGHT if weight is None else weight, "minmax", depth)


def choose_weight(lexical: Ranking, dense: Ranking, judgements: Judgements) -> float:
    """A weight of `hybrid` for queries like these: the mean of the best weights of bootstrap samples of them.

    The best weight (by nDCG@10) of a few hundred queries depends much on which queries they are. The mean over samples
    depends less on it (bagging: Breiman 1996). RESULTS.md has the figures.
    """
    weights_W, metric_WQ = _by_weight(lambda weight: hybrid(lexical, dense, weight), judgements, "ndcg_at_10", STEP)
    queries = metric_WQ.shape[1]
    times_SQ = np.random.default_rng(0).multinomial(queries, np.full(queries, 1 / queries), SAMPLES)
    return round(float(weights_W[(metric_WQ @ times_SQ.T).argmax(0)].mean()), 2)


def weighted_sum(
    lexical: Ranking, dense: Ranking, weight: float, normalisation: Normalisation, depth: int = DEPTH
) -> Ranking:
    """score = weight · dense + (1 - weight) · lexical, where both are first normalised for each query.

    Sources: Wang, Zhuang & Zuccon 2021 for the sum with a dense retriever; Bruch, Gai & Ingber 2023 for the
    normalisations.

    Args:
        lexical: BM25's ranking.
        dense: the dense retriever's ranking of the same queries.
        weight: weight of the dense scores, from 0 to 1.
        normalisation: `minmax` (scores from 0 to 1) or `zscore` (mean 0, standard deviation 1).
        depth: documents to rank for each query.
    """
    normalise = _minmax if normalisation == "minmax" else _zscore
    fused = Ranking.empty(len(lexical.rows_QR), depth)
    for q in range(len(fused.rows_QR)):
        documents = np.union1d(lexical.rows_QR[q], dense.rows_QR[q])
        documents = documents[documents >= 0]
        scores = np.zeros(len(documents))
        for ranking, share in ((dense, weight), (lexical, 1 - weight)):
            found = ranking.rows_QR[q] >= 0
            normalised, missing = normalise(ranking.score_QR[q][found].astype(np.float64))
            of_documents = np.full(len(documents), missing)
            of_documents[np.searchsorted(documents, ranking.rows_QR[q][found])] = normalised
            scores += share * of_documents
        best = np.argsort(-scores, kind="stable")[:depth]
        fused.rows_QR[q, : len(best)], fused.score_QR[q, : len(best)] = documents[best], scores[best]
    return fused


def ordered(rows_QR: np.ndarray, score_QR: np.ndarray) -> Ranking:
    """The documents in the order of their scores, highest first. Equal scores and padding keep their places."""
    order_QR = np.argsort(-score_QR, axis=1, kind="stable")
    return Ranking(np.take_along_axis(rows_QR, order_QR, 1), np.take_along_axis(score_QR, order_QR, 1))


def replace_top(first: Ranking, top: Ranking) -> Ranking:
    """`top` instead of the first documents of a ranking. The others follow in their old order, with lower scores."""
    k = top.rows_QR.shape[1]
    rows_QR, score_QR = first.rows_QR.copy(), first.score_QR.copy()
    rows_QR[:, :k], score_QR[:, :k] = top.rows_QR, top.score_QR
    lowest_Q1 = np.where(top.rows_QR >= 0, top.score_QR, np.inf).min(1, keepdims=True)
    below_QR = lowest_Q1 - 1 - np.arange(rows_QR.shape[1] - k)
    score_QR[:, k:] = np.where(rows_QR[:, k:] >= 0, below_QR, -np.inf)
    return Ranking(rows_QR, score_QR)


def mix_top(first: Ranking, top: Ranking, weight: float, normalisation: Normalisation) -> Ranking:
    """`first` with its first documents ordered by weight · score in `top` + (1 - weight) · score in `first`.

    Args:
        first: the ranking that was ranked again.
        top: its first k documents with the scores of the language model.
        weight: weight of the language model, from 0 to 1.
        normalisation: see `weighted_sum`. Both scores are normalised over the k documents.
    """
    k = top.rows_QR.shape[1]
    head = Ranking(first.rows_QR[:, :k], first.score_QR[:, :k])
    return replace_top(first, weighted_sum(head, top, weight, normalisation, depth=k))


def _minmax(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Scores from 0 to 1, and that of missing documents. Equal scores become 1: above documents that are missing."""
    spread = np.ptp(scores) if len(scores) else 0.0
    return (scores - scores.min()) / spread if spread else np.ones_like(scores), 0.0


def _zscore(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Scores with mean 0 and standard deviation 1, and that of missing documents. Equal scores become 0."""
    normalised = (scores - scores.mean()) / (scores.std() or 1.0) if len(scores) else scores
    return normalised, normalised.min(initial=0.0)


def tune_weight(
    fuse: Callable[[float], Ranking], judgements: Judgements, metric: str, step: float
) -> tuple[float, float]:
    """The weight from 0 to 1 with the highest mean `metric`, and this mean. If weights are equally good, the lowest.

    Args:
        fuse: returns the fused ranking for a weight of the dense scores.
        judgements: judgements of the ranked queries.
        metric: one of `METRICS`.
        step: difference between the weights that are tried.
    """
    weights_W, metric_WQ = _by_weight(fuse, judgements, metric, step)
    means_W = metric_WQ.mean(1)
    best = int(means_W.argmax())
    return float(weights_W[best]), float(means_W[best])


def _by_weight(
    fuse: Callable[[float], Ranking], judgements: Judgements, metric: str, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """(weights_W from 0 to 1, metric_WQ of each query with each weight)"""
    weights_W = np.linspace(0, 1, round(1 / step) + 1).round(6)
    values = [per_query_metrics(fuse(float(weight)), judgements)[metric] for weight in weights_W]
    return weights_W, np.stack(values)
