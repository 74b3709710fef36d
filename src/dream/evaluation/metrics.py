"""Rankings, their fusion, and the retrieval metrics of each query as pure functions of rankings and judgements.

Shape suffixes: Q labelled queries, R ranks (best first, padded with -1), K passages found for a query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dream.corpora.base import Labels
from dream.store.permutation import permute
from dream.store.store import Store

DEPTH = 100  # documents ranked for each query; recall@100 needs them
RRF_K = 5  # constant of reciprocal rank fusion, chosen on pydocs dev; the paper's 60 weights first ranks too little
NDCG_RANKS = 10
SAMPLE_SEED = 20_260_705  # fixed, so every evaluation with the same max_queries has the same queries
TITLES = {"ndcg_at_10": "nDCG@10", "recall_at_10": "recall@10", "recall_at_100": "recall@100", "mrr_at_10": "MRR@10",
          "map_at_100": "MAP@100", "success_at_1": "success@1", "success_at_5": "success@5"}  # fmt: skip
METRICS = tuple(TITLES)


@dataclass(frozen=True)
class Ranking:
    """The documents ranked for each query, best first.

    Attributes:
        rows_QR: document rows of the store, int64, padded with -1.
        score_QR: their scores, float32, padded with -inf.
    """

    rows_QR: np.ndarray
    score_QR: np.ndarray

    @classmethod
    def empty(cls, queries: int, depth: int) -> "Ranking":
        """A ranking without documents, which the caller fills."""
        return cls(np.full((queries, depth), -1, np.int64), np.full((queries, depth), -np.inf, np.float32))


@dataclass(frozen=True)
class Judgements:
    """The queries of a split that have a relevant document, with their relevant documents as rows of the store.

    Attributes:
        query_ids: ids of the queries.
        queries: their texts.
        grades: for each query, document row → grade above 0.
        missing: for each query, id → grade of the relevant documents that the store lacks. They count as not found.
        left_out: number of queries without a relevant document.
    """

    query_ids: list[str]
    queries: list[str]
    grades: list[dict[int, int]]
    missing: list[dict[str, int]]
    left_out: int

    def __len__(self) -> int:
        return len(self.queries)

    @classmethod
    def of(cls, labels: Labels, store: Store) -> "Judgements":
        """Find the labelled documents in the store. Copies of a document count as one, with their highest grade."""
        row_of = store.rows_of(list({document for graded in labels.qrels.values() for document in graded}))
        query_ids = [query for query in labels.qrels if max(labels.qrels[query].values(), default=0) > 0]
        grades: list[dict[int, int]] = []
        missing: list[dict[str, int]] = []
        for query in query_ids:
            found: dict[int, int] = {}
            absent: dict[str, int] = {}
            for document, grade in labels.qrels[query].items():
                if grade > 0 and document in row_of:
                    row = row_of[document]
                    found[row] = max(grade, found.get(row, 0))
                elif grade > 0:
                    absent[document] = grade
            grades.append(found)
            missing.append(absent)
        queries = [labels.queries[query] for query in query_ids]
        return cls(query_ids, queries, grades, missing, len(labels.qrels) - len(query_ids))

    def sample(self, count: int) -> "Judgements":
        """At most `count` queries, drawn at random, in their order. The draw only depends on the number of queries."""
        chosen = np.sort(permute(SAMPLE_SEED, np.arange(min(count, len(self))), len(self)))
        take = lambda part: [part[q] for q in chosen]  # noqa: E731
        return Judgements(take(self.query_ids), take(self.queries), take(self.grades), take(self.missing),
                          self.left_out)  # fmt: skip


def per_query_metrics(ranking: Ranking, judgements: Judgements) -> dict[str, np.ndarray]:
    """Each of `METRICS` for each query, float64. The documents of a ranking must be distinct.

    nDCG is trec_eval's `ndcg_cut`, which BEIR reports: gain = grade, discount = log2(rank + 1) (Järvelin & Kekäläinen
    2002). recall@k is the share of all relevant documents that are found. MRR@10 is 1 / rank of the first relevant
    document, or 0 if none is among the first 10. MAP is trec_eval's `map_cut`: the sum of the precisions at the ranks
    of the relevant documents found, divided by the number of relevant documents.
    """
    grade_QR = _grades(ranking.rows_QR, judgements)
    relevant_QR = grade_QR[:, :DEPTH] > 0
    relevant_Q = np.array([len(g) + len(m) for g, m in zip(judgements.grades, judgements.missing, strict=True)])
    first_Q = np.where(relevant_QR[:, :10].any(1), relevant_QR[:, :10].argmax(1) + 1.0, np.inf)
    precision_QR = np.cumsum(relevant_QR, axis=1) / np.arange(1, relevant_QR.shape[1] + 1)
    return {
        "ndcg_at_10": _gain(grade_QR[:, :NDCG_RANKS]) / _gain(_ideal(judgements)),
        "recall_at_10": relevant_QR[:, :10].sum(1) / relevant_Q,
        "recall_at_100": relevant_QR.sum(1) / relevant_Q,
        "mrr_at_10": 1 / first_Q,
        "map_at_100": (precision_QR * relevant_QR).sum(1) / relevant_Q,
        "success_at_1": relevant_QR[:, :1].any(1).astype(np.float64),
        "success_at_5": relevant_QR[:, :5].any(1).astype(np.float64),
    }


def mean_metrics(per_query: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over the queries."""
    from torchmetrics import MeanMetric  # takes seconds to import, which a search need not wait for

    means = {}
    for name, values_Q in per_query.items():
        metric = MeanMetric(sync_on_compute=False).set_dtype(torch.float64)
        metric.update(torch.from_numpy(np.asarray(values_Q, dtype=np.float64)))
        means[name] = float(metric.compute())
    return means


def _grades(rows_QR: np.ndarray, judgements: Judgements) -> np.ndarray:
    """grade_QR float64: grade of the document at each rank; 0 if it is not relevant."""
    grade_QR = np.zeros(rows_QR.shape)
    for q, graded in enumerate(judgements.grades):
        ranks = np.flatnonzero(np.isin(rows_QR[q], list(graded)))
        grade_QR[q, ranks] = [graded[int(row)] for row in rows_QR[q, ranks]]
    return grade_QR


def _ideal(judgements: Judgements) -> np.ndarray:
    """grade_QR of the best possible ranking, including the relevant documents that the store lacks."""
    ideal_QR = np.zeros((len(judgements), NDCG_RANKS))
    for q, (graded, absent) in enumerate(zip(judgements.grades, judgements.missing, strict=True)):
        best = sorted([*graded.values(), *absent.values()], reverse=True)[:NDCG_RANKS]
        ideal_QR[q, : len(best)] = best
    return ideal_QR


def _gain(grade_QR: np.ndarray) -> np.ndarray:
    """Discounted cumulative gain of each query."""
    return grade_QR @ (1 / np.log2(np.arange(grade_QR.shape[1]) + 2))


def documents_from_passages(
    sim_QK: np.ndarray, ids_QK: np.ndarray, passage_documents: np.ndarray, depth: int
) -> Ranking:
    """Rank documents by the score of their best passage (MaxP, Dai & Callan 2019). Ties are ordered by document row.

    Args:
        sim_QK: scores of the passages, best first.
        ids_QK: their ids, padded with -1.
        passage_documents: document row of each passage.
        depth: documents to rank for each query.
    """
    ranking = Ranking.empty(len(ids_QK), depth)
    for q, (sim, ids) in enumerate(zip(sim_QK, ids_QK, strict=True)):
        found = ids >= 0
        scores, documents = sim[found], passage_documents[ids[found]]
        order = np.lexsort((documents, -scores))
        first = np.sort(np.unique(documents[order], return_index=True)[1])[:depth]
        ranking.score_QR[q, : len(first)] = scores[order][first]
        ranking.rows_QR[q, : len(first)] = documents[order][first]
    return ranking


def reciprocal_rank_fusion(rankings: Sequence[Ranking], k: int = RRF_K, depth: int = DEPTH) -> Ranking:
    """Fuse rankings of the same queries: score = Σ 1 / (k + rank) (Cormack, Clarke & Büttcher 2009).

    The sum is over the rankings that contain the document. Ties are ordered by document row.
    """
    queries = len(rankings[0].rows_QR)
    fused = Ranking.empty(queries, depth)
    gains = np.concatenate([1 / (k + 1 + np.arange(ranking.rows_QR.shape[1])) for ranking in rankings])
    for q in range(queries):
        ranked = np.concatenate([ranking.rows_QR[q] for ranking in rankings])
        documents, place = np.unique(ranked[ranked >= 0], return_inverse=True)
        scores = np.bincount(place, gains[ranked >= 0], minlength=len(documents))
        best = np.argsort(-scores, kind="stable")[:depth]
        fused.score_QR[q, : len(best)] = scores[best]
        fused.rows_QR[q, : len(best)] = documents[best]
    return fused
