"""Rankings of documents by BM25 and by an index. Run: pytest tests/evaluation/test_ranking.py"""

import numpy as np
import pytest
import torch

from dream.evaluation.metrics import METRICS, Judgements, mean_metrics, per_query_metrics
from dream.evaluation.ranking import rank_bm25, rank_dense
from dream.indexes.bm25 import BM25Index


def exact(passage_ND):
    """An exact index as a function, ties by lower id."""

    def search(query_QD, k):
        sim_QN = query_QD @ passage_ND.T
        order = torch.argsort(sim_QN, dim=1, descending=True, stable=True)[:, :k]
        return sim_QN.gather(1, order), order

    return search


@pytest.fixture
def many_passages():
    """300 passages of very uneven documents: half of them belong to document 0."""
    generator = torch.Generator().manual_seed(0)
    passage_ND = torch.randn(300, 8, generator=generator)
    query_QD = torch.randn(7, 8, generator=generator)
    documents = np.concatenate([np.zeros(150, np.int64), np.arange(1, 151)])
    return passage_ND, query_QD, documents


def test_dense_ranking_is_the_maximum_over_passages(many_passages):
    passage_ND, query_QD, documents = many_passages
    ranking = rank_dense(exact(passage_ND), query_QD, documents)
    sim_QN = (query_QD @ passage_ND.T).numpy()
    best = np.stack([sim_QN[:, documents == row].max(1) for row in range(151)], axis=1)
    assert ranking.rows_QR.shape == (7, 100)
    assert np.array_equal(ranking.rows_QR, np.argsort(-best, axis=1, kind="stable")[:, :100])
    assert np.allclose(ranking.score_QR, -np.sort(-best, axis=1)[:, :100])


def test_searches_deeper_only_where_documents_repeat(many_passages):
    """20 passages hold 10 documents of query 1, but not of query 0, whose 150 best are all of document 0."""
    passage_ND, _, documents = many_passages
    passage_ND = torch.nn.functional.one_hot((torch.arange(300) < 150).long(), 2).float()
    asked = []

    def search(query_QD, k):
        asked.append((len(query_QD), k))
        return exact(passage_ND)(query_QD, k)

    query_QD = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    ranking = rank_dense(search, query_QD, documents, depth=10)
    assert ranking.rows_QR.tolist() == [list(range(10)), list(range(1, 11))]
    assert asked == [(2, 20), (1, 80), (1, 300)]


def test_fewer_documents_than_the_depth(many_passages):
    passage_ND, query_QD, _ = many_passages
    ranking = rank_dense(exact(passage_ND), query_QD, np.arange(300) // 100)
    assert (np.sort(ranking.rows_QR[:, :3], axis=1) == [0, 1, 2]).all()
    assert (ranking.rows_QR[:, 3:] == -1).all()


def test_chunks_do_not_change_the_ranking(many_passages, monkeypatch):
    passage_ND, query_QD, documents = many_passages
    whole = rank_dense(exact(passage_ND), query_QD, documents)
    monkeypatch.setattr("dream.evaluation.ranking.CHUNK_CELLS", 250)
    assert np.array_equal(rank_dense(exact(passage_ND), query_QD, documents).rows_QR, whole.rows_QR)


def test_no_queries(many_passages):
    passage_ND, query_QD, documents = many_passages
    assert rank_dense(exact(passage_ND), query_QD[:0], documents).rows_QR.shape == (0, 100)


def test_bm25_finds_the_documents_of_the_tiny_corpus(corpus, store):
    """Each query is two words that only its own document has."""
    index = BM25Index.open_or_build(store)
    judgements = Judgements.of(corpus.labels("dev"), store)
    ranking = rank_bm25(index, judgements.queries, store.passage_documents)
    means = mean_metrics(per_query_metrics(ranking, judgements))
    assert len(judgements) == 80
    assert means == pytest.approx(dict.fromkeys(METRICS, 1.0), abs=0.02)
