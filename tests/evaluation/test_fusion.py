"""Fusion by a weighted sum, and the choice of its weight. Run: pytest tests/evaluation/test_fusion.py"""

import numpy as np
import pytest

from dream.evaluation.fusion import WEIGHT, choose_weight, hybrid, tune_weight, weighted_sum
from dream.evaluation.metrics import Judgements, Ranking


def test_weighted_fusion_by_hand():
    """BM25: a 4, b 2; dense: b 0.9, c 0.5. Min-max: a (1, 0), b (0, 1), c (0, 0)."""
    lexical = Ranking(np.array([[1, 2, -1]]), np.array([[4.0, 2.0, -np.inf]], np.float32))
    dense = Ranking(np.array([[2, 3, -1]]), np.array([[0.9, 0.5, -np.inf]], np.float32))
    fused = weighted_sum(lexical, dense, 0.7, "minmax", depth=4)
    assert fused.rows_QR.tolist() == [[2, 1, 3, -1]]
    assert fused.score_QR[0, :3] == pytest.approx([0.7, 0.3, 0.0])
    scores = weighted_sum(lexical, dense, 0.5, "zscore", depth=3)
    assert scores.rows_QR.tolist() == [[1, 2, 3]]
    assert scores.score_QR[0] == pytest.approx([0.0, 0.0, -1.0])


def test_of_equally_good_weights_the_lowest_is_chosen():
    """Document 1 is relevant: rank 1 from weight 0.5 on (nDCG 1), rank 2 below (nDCG 1 / log2(3) = 0.63)."""
    judgements = Judgements(["q"], ["q"], [{1: 1}], [{}], 0)

    def fuse(weight: float) -> Ranking:
        rows = [1, 2] if weight >= 0.5 else [2, 1]
        return Ranking(np.array([rows]), np.zeros((1, 2), np.float32))

    assert tune_weight(fuse, judgements, "ndcg_at_10", 0.25) == (0.5, 1.0)
    assert tune_weight(lambda _: fuse(0), judgements, "ndcg_at_10", 0.5) == (0.0, pytest.approx(1 / np.log2(3)))


def test_the_hybrid_of_a_run():
    """BM25's scores become 1, 2/3 and 0, the cosines 0, 1/2 and 1."""
    lexical = Ranking(np.array([[2, 1, 3]]), np.array([[4.0, 3.0, 1.0]], np.float32))
    dense = Ranking(np.array([[3, 1, 2]]), np.array([[0.8, 0.6, 0.4]], np.float32))
    for weight in (None, 0.2, 0.7):
        fused, used = hybrid(lexical, dense, weight), weight or WEIGHT
        scores = {2: 1 - used, 1: 0.5 * used + 2 / 3 * (1 - used), 3: used}
        order = sorted(scores, key=lambda row: -scores[row])
        assert fused.rows_QR[0, :3].tolist() == order
        assert fused.score_QR[0, :3] == pytest.approx([scores[row] for row in order])


def test_held_out_questions_choose_the_weight():
    """BM25 ranks document 1 first for each query, and the dense ranking document 2."""
    ranking = lambda rows: Ranking(np.array(rows), np.array([[2.0, 1.0]] * len(rows), np.float32))  # noqa: E731
    lexical, dense = ranking([[1, 2]] * 3), ranking([[2, 1]] * 3)
    judged = lambda rows: Judgements(["q"] * len(rows), ["q"] * len(rows), [{row: 1} for row in rows],  # noqa: E731
                                     [{}] * len(rows), 0)  # fmt: skip
    assert choose_weight(lexical, dense, judged([1, 1, 1])) == 0.0
    only_dense = choose_weight(lexical, dense, judged([2, 2, 2]))
    assert only_dense == 0.55  # from here on, the first document of the dense ranking is first
    mixed = choose_weight(lexical, dense, judged([1, 1, 2]))
    assert 0 < mixed < only_dense  # some samples have more of the third query
    assert choose_weight(lexical, dense, judged([1, 1, 2])) == mixed


def test_in_the_hybrid_documents_that_bm25_does_not_find_have_no_share():
    """BM25 finds one document of two, or nothing at all."""
    dense = Ranking(np.array([[2, 1]]), np.array([[0.8, 0.6]], np.float32))
    found = Ranking(np.array([[1, -1]]), np.array([[2.0, -np.inf]], np.float32))
    assert hybrid(found, dense, 0.4).rows_QR[0, :2].tolist() == [1, 2]
    assert hybrid(found, dense, 0.4).score_QR[0, :2] == pytest.approx([0.6, 0.4])
    nothing = Ranking(np.array([[-1, -1]]), np.full((1, 2), -np.inf, np.float32))
    assert hybrid(nothing, dense, 0.5).rows_QR[0, :2].tolist() == [2, 1]


def test_in_the_hybrid_a_dense_ranking_may_be_short_and_have_negative_cosines():
    lexical = Ranking(np.array([[3, 1]]), np.array([[2.0, 1.0]], np.float32))
    short = Ranking(np.array([[2, 1, -1]]), np.array([[0.8, -0.6, -np.inf]], np.float32))
    assert hybrid(lexical, short, 0.4).rows_QR[0, :3].tolist() == [3, 2, 1]
    assert hybrid(lexical, short, 0.4).score_QR[0, :3] == pytest.approx([0.6, 0.4, 0.0])
