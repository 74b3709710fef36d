"""Retrieval metrics, rankings and their fusion. Run: pytest tests/evaluation/test_metrics.py

trec_eval's nDCG by hand: the document at rank r gives grade / log2(r + 1), divided by that of the best ranking.
"""

from math import log2

import numpy as np
import pytest

from dream.corpora.base import Labels
from dream.evaluation.metrics import (
    METRICS,
    Judgements,
    Ranking,
    documents_from_passages,
    mean_metrics,
    per_query_metrics,
    reciprocal_rank_fusion,
)


def judged(grades, missing=None):
    names = [str(q) for q in range(len(grades))]
    return Judgements(names, names, grades, missing or [{} for _ in grades], 0)


def measure(rows, grades, missing=None):
    """Metrics of one query whose documents are ranked like this."""
    ranking = Ranking(np.array([rows]), np.zeros((1, len(rows)), np.float32))
    return {name: float(value[0]) for name, value in per_query_metrics(ranking, judged([grades], missing)).items()}


def test_by_hand():
    """Ranked 9, 4, 7 and nothing else, with grades 4: 2, 7: 1 and 5: 1, which is not found."""
    found = measure([9, 4, 7] + [-1] * 97, {4: 2, 7: 1, 5: 1})
    gain = 2 / log2(3) + 1 / log2(4)
    best = 2 / log2(2) + 1 / log2(3) + 1 / log2(4)
    assert found["ndcg_at_10"] == pytest.approx(gain / best)
    assert found["recall_at_10"] == found["recall_at_100"] == pytest.approx(2 / 3)
    assert found["mrr_at_10"] == 1 / 2
    assert found["map_at_100"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert (found["success_at_1"], found["success_at_5"]) == (0, 1)


def test_a_perfect_ranking_is_1():
    found = measure([3, 1, *range(10, 108)], {3: 3, 1: 1})
    assert found == dict.fromkeys(METRICS, 1)


def test_ranks_11_and_100_count_for_recall_at_100_only():
    found = measure(list(range(100)), {10: 1, 99: 1})
    assert found.pop("map_at_100") == pytest.approx((1 / 11 + 2 / 100) / 2)
    assert found == dict.fromkeys(set(METRICS) - {"map_at_100"}, 0) | {"recall_at_100": 1}
    assert measure(list(range(100)), {9: 1})["mrr_at_10"] == 1 / 10


def test_success_looks_at_the_first_and_the_first_five():
    assert measure(list(range(100)), {4: 1})["success_at_5"] == 1
    assert measure(list(range(100)), {5: 1})["success_at_5"] == 0
    assert measure(list(range(100)), {0: 1, 70: 1})["success_at_1"] == 1


def test_a_ranking_deeper_than_100_is_read_to_100():
    found = measure(list(range(300)), {100: 1})
    assert found == dict.fromkeys(METRICS, 0)


def test_relevant_documents_that_the_corpus_lacks_count():
    found = measure([4] + [-1] * 99, {4: 1}, missing=[{"x": 1, "y": 3}])
    assert found["recall_at_10"] == pytest.approx(1 / 3)
    assert found["ndcg_at_10"] == pytest.approx(1 / (3 + 1 / log2(3) + 1 / log2(4)))


def test_more_than_ten_relevant_documents_can_still_be_perfect():
    found = measure(list(range(100)), dict.fromkeys(range(20), 1))
    assert found["ndcg_at_10"] == pytest.approx(1)
    assert found["recall_at_10"] == 1 / 2


def test_padding_is_never_relevant():
    assert measure([-1] * 100, {0: 1}, missing=[{}])["recall_at_100"] == 0


def test_judgements_of_labels(store):
    """A query without a grade above 0 is left out; a document the store lacks is kept as missing."""
    labels = Labels(
        {"a": "first", "b": "second", "c": "third"},
        {"a": {"d3": 2, "nowhere": 1, "d5": 0}, "b": {"d4": 0}, "c": {"d7": 1}},
    )
    judgements = Judgements.of(labels, store)
    rows = store.rows_of(["d3", "d7"])
    assert judgements.query_ids == ["a", "c"]
    assert judgements.queries == ["first", "third"]
    assert judgements.grades == [{rows["d3"]: 2}, {rows["d7"]: 1}]
    assert judgements.missing == [{"nowhere": 1}, {}]
    assert judgements.left_out == 1


def test_copies_are_one_relevant_document():
    class TwoCopies:
        def rows_of(self, names):
            return {"x": 5, "copy of x": 5}

    labels = Labels({"q": "text"}, {"q": {"x": 1, "copy of x": 3}})
    assert Judgements.of(labels, TwoCopies()).grades == [{5: 3}]


def test_documents_by_their_best_passage():
    """Passages 0-5 belong to documents 0 0 1 1 2 3; document 3 ties with 2 and comes after it."""
    ranking = documents_from_passages(
        np.array([[0.9, 0.8, 0.7, 0.5, 0.5, -np.inf], [0.4, -np.inf, -np.inf, -np.inf, -np.inf, -np.inf]], np.float32),
        np.array([[2, 0, 3, 5, 4, -1], [1, -1, -1, -1, -1, -1]]),
        np.array([0, 0, 1, 1, 2, 3]),
        3,
    )
    assert ranking.rows_QR.tolist() == [[1, 0, 2], [0, -1, -1]]
    assert ranking.score_QR[0] == pytest.approx([0.9, 0.8, 0.5])
    assert ranking.score_QR[1].tolist() == [pytest.approx(0.4), -np.inf, -np.inf]


def test_reciprocal_rank_fusion():
    """Document 7 is second twice, 1 and 2 are first once; 1 is also third: 1/6 + 1/8 > 2/7 > 1/6."""
    scores = np.zeros((1, 3), np.float32)
    one = Ranking(np.array([[1, 7, -1]]), scores)
    two = Ranking(np.array([[2, 7, 1]]), scores)
    fused = reciprocal_rank_fusion([one, two], depth=4)
    assert fused.rows_QR.tolist() == [[1, 7, 2, -1]]
    assert fused.score_QR[0, :3] == pytest.approx([1 / 6 + 1 / 8, 2 / 7, 1 / 6])
    assert fused.score_QR[0, 3] == -np.inf


def test_fusion_ties_go_to_the_lower_row():
    scores = np.zeros((1, 2), np.float32)
    fused = reciprocal_rank_fusion([Ranking(np.array([[8, 3]]), scores), Ranking(np.array([[3, 8]]), scores)], depth=2)
    assert fused.rows_QR.tolist() == [[3, 8]]


def test_means():
    assert mean_metrics({"a": np.array([0.0, 1.0, 0.5]), "b": np.array([0.1])}) == pytest.approx({"a": 0.5, "b": 0.1})


def test_against_ir_measures():
    ir_measures = pytest.importorskip("ir_measures")
    names = {"ndcg_at_10": "nDCG@10", "recall_at_10": "R@10", "recall_at_100": "R@100", "mrr_at_10": "RR@10",
             "map_at_100": "AP@100", "success_at_1": "Success@1", "success_at_5": "Success@5"}  # fmt: skip
    draw = np.random.default_rng(0)
    rows_QR = np.stack([draw.permutation(150)[:100] for _ in range(30)])
    grades = [{int(row): int(draw.integers(1, 4)) for row in draw.choice(150, 12, replace=False)} for _ in range(30)]
    ours = per_query_metrics(Ranking(rows_QR, np.zeros(rows_QR.shape, np.float32)), judged(grades))
    qrels = {str(q): {str(row): grade for row, grade in graded.items()} for q, graded in enumerate(grades)}
    run = {str(q): {str(row): float(-rank) for rank, row in enumerate(rows)} for q, rows in enumerate(rows_QR)}
    for name, measure_name in names.items():
        theirs = ir_measures.iter_calc([ir_measures.parse_measure(measure_name)], qrels, run)
        for value in theirs:
            assert ours[name][int(value.query_id)] == pytest.approx(value.value)
