"""Near copies as one document. Run: pytest tests/evaluation/test_copies_as_one.py"""

import numpy as np
import pytest
from tests.word_store import word_store

from dream.evaluation.metrics import Judgements, Ranking, per_query_metrics
from dream.evaluation.near_copies import CopiesAsOne
from dream.utils.errors import ConfigError

WORDS = [f"w{n}" for n in range(40)]
TEXTS = [" ".join(WORDS), "one two three", " ".join([*WORDS[:-1], "end"]), "four five six"]  # 2 is a near copy of 0


def test_by_hand(tmp_path):
    """Query a: only document 2 is relevant, document 0 ranks first. Query b: both are relevant."""
    copies = CopiesAsOne(word_store(tmp_path, TEXTS), 0.8)
    judged = Judgements(["a", "b"], ["", ""], [{2: 1}, {0: 1, 2: 2}], [{}, {}], 0)
    rows = np.array([[0, 1, 2, 3], [1, 2, 0, -1]])
    ranking = Ranking(rows, np.where(rows < 0, -np.inf, [4.0, 3.0, 2.0, 1.0]).astype(np.float32))
    merged, once = copies.judgements(judged), copies.ranking(ranking)
    assert merged.grades == [{0: 1}, {0: 2}]
    assert once.rows_QR.tolist() == [[0, 1, 3, -1], [1, 0, -1, -1]]
    assert once.score_QR.tolist() == [[4, 3, 1, -np.inf], [4, 3, -np.inf, -np.inf]]
    assert per_query_metrics(ranking, judged)["mrr_at_10"].tolist() == [1 / 3, 1 / 2]
    assert per_query_metrics(once, merged)["mrr_at_10"].tolist() == [1, 1 / 2]
    assert "1 of 4 documents" in copies.note()


def test_a_similarity_out_of_range_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"near_copy=0.2"):
        CopiesAsOne(word_store(tmp_path, TEXTS), 0.2)
