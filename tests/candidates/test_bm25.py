"""BM25 over passages. Run: pytest tests/candidates/test_bm25.py

By hand, with Lucene's formula, k1 = 1.5 and b = 0.75: idf = ln(1 + (N - df + 0.5) / (df + 0.5)), and a term's weight is
idf · tf / (tf + k1 · (1 - b + b · length / average length)).
"""

from math import log

import bm25s
import numpy as np
import pytest
import torch

from dream.indexes.bm25 import BM25Candidates, BM25Index, words
from dream.utils.errors import ConfigError

FRUIT = ["apple banana", "apple apple cherry", "date elder"]  # 7 words in 3 passages


def weight(df, tf, length):
    return log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + 1.5 * (0.25 + 0.75 * length / (7 / 3)))


@pytest.fixture
def fruit(make_store, tmp_path):
    return BM25Index.open_or_build(make_store(FRUIT), tmp_path / "bm25")


def test_scores_are_lucenes(fruit):
    scores_QK, ids_QK = fruit.search(["Apple cherry", "cherry cherry"], 3)
    assert ids_QK.tolist() == [[1, 0, -1], [1, -1, -1]]
    expected = [weight(2, 2, 3) + weight(1, 1, 3), weight(2, 1, 2)]
    assert scores_QK[0, :2] == pytest.approx(expected, rel=1e-6)
    assert scores_QK[1, 0] == pytest.approx(2 * weight(1, 1, 3), rel=1e-6)  # a repeated query word counts twice
    assert scores_QK[0, 2] == -np.inf
    assert (scores_QK.dtype, ids_QK.dtype) == (np.float32, np.int64)


def test_queries_without_a_known_word_find_nothing(fruit):
    scores_QK, ids_QK = fruit.search(["", "the of and", "zebra"], 5)
    assert (ids_QK == -1).all()
    assert (scores_QK == -np.inf).all()


def test_k_beyond_the_corpus_and_no_queries(fruit):
    assert fruit.search(["banana date"], 10)[1].tolist() == [[0, 2] + [-1] * 8]
    assert fruit.search([], 4)[1].shape == (0, 4)


def test_ties_go_to_the_lower_id(make_store, tmp_path):
    index = BM25Index.open_or_build(make_store(["fox hen"] * 6 + ["fox fox"]), tmp_path)
    assert index.search(["fox"], 3)[1].tolist() == [[6, 0, 1]]


def test_query_terms_keeps_the_rarest(fruit):
    assert fruit.search(["apple cherry"], 3, query_terms=1)[1].tolist() == [[1, -1, -1]]  # only cherry is left


def test_long_documents_count_by_passage(make_store, tmp_path):
    store = make_store(["ant bee cat dog", "elk fox"], passage=2)
    assert BM25Index.open_or_build(store, tmp_path).search(["cat", "fox"], 1)[1].tolist() == [[1], [2]]


def test_the_second_open_builds_nothing(make_store, tmp_path, monkeypatch):
    store = make_store(FRUIT)
    first = BM25Index.open_or_build(store, tmp_path / "cache").search(["apple"], 2)
    monkeypatch.setattr("dream.indexes.bm25.passage_texts", None)
    again = BM25Index.open_or_build(store, tmp_path / "cache").search(["apple"], 2)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    [folder] = (tmp_path / "cache").iterdir()
    assert {file.suffix for file in folder.iterdir()} == {".npy", ".json"}


def test_a_damaged_index_is_named_and_made_anew(make_store, tmp_path, capsys):
    store = make_store(FRUIT)
    BM25Index.open_or_build(store, tmp_path / "cache")
    [file] = (tmp_path / "cache").glob("*/params.index.json")
    whole = file.read_bytes()
    file.write_text("{")
    BM25Index.open_or_build(store, tmp_path / "cache")
    assert f"{file}: damaged" in capsys.readouterr().out
    assert file.read_bytes() == whole


def test_words_are_those_of_bm25s_but_an_underscore_ends_one():
    text = "The A-list: torch.nn.cross_entropy__, naïve CAFÉ's 12 x 3.14 and\nÜber"
    [ids], vocabulary = bm25s.tokenize([text.replace("_", " ")], show_progress=False)
    names = {number: word for word, number in vocabulary.items()}
    assert words(text) == [names[number] for number in ids]
    assert words("cross_entropy") == ["cross", "entropy"]


def test_the_target_is_not_searched_for(make_store, batch_of, tmp_path):
    """Window 0 is "ant" → "fox": passage 1 shares its context, passage 2 only its target."""
    store = make_store(["ant fox", "ant bee", "fox hen"])
    source = BM25Candidates(str(tmp_path), None)
    source.prepare(store, None)
    ids_BM = source.propose(batch_of(store, [0]), torch.zeros(1, 2), 2, 0)
    assert ids_BM.tolist() == [[0, 1, -1]]  # k = 2 and one more, for the window's own passage


def test_bad_query_terms():
    with pytest.raises(ConfigError, match="candidates.sources.bm25.query_terms=0"):
        BM25Candidates("x", 0)
