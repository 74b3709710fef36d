"""Ranks documents for labelled queries, by BM25 and by an encoder with its index."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dream.evaluation.metrics import DEPTH, Ranking, documents_from_passages

if TYPE_CHECKING:
    from dream.indexes.bm25 import BM25Index

CHUNK_CELLS = 4_000_000  # passages in memory at once, over all queries of a chunk: about 100 MB

# (positions of queries, k) -> sim_QK, ids_QK; best first, ties by lower id, padded with id -1
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def rank_bm25(index: "BM25Index", queries: Sequence[str], passage_documents: np.ndarray, depth: int = DEPTH) -> Ranking:
    """Rank documents by their BM25 score, or that of their best passage.

    Args:
        index: index of passages, or of whole documents.
        queries: texts of the queries.
        passage_documents: document row of each row of the index.
        depth: documents to rank for each query.
    """

    def search(chosen: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return index.search([queries[q] for q in chosen], k)

    return _rank(search, len(queries), passage_documents, depth)


def rank_dense(
    search: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    query_QD: Tensor,
    passage_documents: np.ndarray,
    depth: int = DEPTH,
) -> Ranking:
    """Rank documents by the similarity of their nearest passage.

    Args:
        search: method `search` of an index or of an index handle.
        query_QD: embeddings of the queries.
        passage_documents: document row of each passage.
        depth: documents to rank for each query.
    """

    def search_rows(chosen: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        sim_QK, ids_QK = search(query_QD[chosen], k)
        return sim_QK.float().cpu().numpy(), ids_QK.cpu().numpy()

    return _rank(search_rows, len(query_QD), passage_documents, depth)


def leave_out(ranking: Ranking, rows_Q: np.ndarray) -> Ranking:
    """The ranking without one document of each query (-1: none). It has one rank less."""
    is_left_out_QR = (ranking.rows_QR == rows_Q[:, None]) & (rows_Q >= 0)[:, None]
    kept_QR = is_left_out_QR.argsort(axis=1, kind="stable")[:, :-1]
    return Ranking(*(np.take_along_axis(part, kept_QR, 1) for part in (ranking.rows_QR, ranking.score_QR)))


def _rank(search: Search, queries: int, passage_documents: np.ndarray, depth: int) -> Ranking:
    """Search for 2 · depth passages. If they belong to too few documents, search again with four times as many.

    This ends when each query has enough documents or all passages are searched.
    """
    ranking = Ranking.empty(queries, depth)
    pending = np.arange(queries)
    k = 2 * depth
    while len(pending):
        k = min(k, len(passage_documents))
        short = []
        for chosen in np.array_split(pending, -(-len(pending) * k // CHUNK_CELLS)):
            sim_QK, ids_QK = search(chosen, k)
            found = documents_from_passages(sim_QK, ids_QK, passage_documents, depth)
            ranking.rows_QR[chosen], ranking.score_QR[chosen] = found.rows_QR, found.score_QR
            can_find_more = (ids_QK[:, -1] >= 0) & (k < len(passage_documents))
            short.append(chosen[can_find_more & (found.rows_QR[:, -1] < 0)])
        pending = np.concatenate(short)
        k *= 4
    return ranking
