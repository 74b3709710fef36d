"""BM25 over passages. Run: pytest tests/indexes/test_bm25_index.py

By hand, with Lucene's formula, k1 = 1.2 and b = 0.75: idf = ln(1 + (N - df + 0.5) / (df + 0.5)), and a term's weight is
idf · tf / (tf + k1 · (1 - b + b · length / average length)).
"""

import pickle
from functools import partial
from math import log

import numpy as np
import pytest
from tests.word_store import word_store

from dream.indexes.bm25 import BM25Index, top_k
from dream.utils.errors import DataError

FRUIT = ["apple banana", "apple apple cherry", "date elder"]  # 7 words in 3 passages


def weight(df, tf, length):
    return log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + 1.2 * (0.25 + 0.75 * length / (7 / 3)))


@pytest.fixture
def make_store(tmp_path):
    return partial(word_store, tmp_path)


@pytest.fixture
def fruit(make_store):
    return BM25Index.open_or_build(make_store(FRUIT))


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


def test_ties_are_ordered_by_lower_id(make_store):
    index = BM25Index.open_or_build(make_store(["fox hen"] * 6 + ["fox fox"]))
    assert index.search(["fox"], 3)[1].tolist() == [[6, 0, 1]]


def test_the_compiled_search_finds_the_same(make_store, monkeypatch):
    """Many queries, some with repeated, unknown or no words, are searched in two threads, with numba and without."""
    pytest.importorskip("numba")
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("dream.indexes.bm25.COMPILED", 1)
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("bcdfg"), 2)) for _ in range(25)]
    texts = [" ".join(draw.choice(words, draw.integers(1, 9))) for _ in range(700)]
    queries = ["", "unknown", *[" ".join(draw.choice(words, 6)) for _ in range(50)]]
    index = BM25Index.open_or_build(make_store(texts))
    for k in (1, 3, 100):
        compiled = index.search(queries, k)
        with monkeypatch.context() as without_numba:
            without_numba.setattr("dream.indexes.bm25.find_spec", lambda name: None)
            plain = index.search(queries, k)
        assert np.array_equal(compiled[0], plain[0])
        assert np.array_equal(compiled[1], plain[1])
        assert (compiled[1][:2] == -1).all()
        assert (compiled[1][2:, 0] >= 0).all()


def test_without_a_folder_for_its_cache_numba_compiles_again():
    pytest.importorskip("numba")
    from dream.indexes.bm25_compiled import compiled

    without_file = eval("lambda value: value + 1")
    assert compiled(without_file)(1) == 2


def test_long_documents_count_by_passage_or_as_a_whole(make_store):
    store = make_store(["ant bee cat dog", "elk fox"], passage=2)
    assert BM25Index.open_or_build(store).search(["cat", "fox"], 1)[1].tolist() == [[1], [2]]
    documents = BM25Index.open_or_build(store, unit="document")
    assert documents.search(["cat", "fox"], 1)[1].tolist() == [[0], [1]]


def test_the_second_open_builds_nothing(make_store, monkeypatch):
    store = make_store(FRUIT)
    first = BM25Index.open_or_build(store).search(["apple"], 2)
    monkeypatch.setattr("dream.indexes.bm25.passage_texts", None)
    again = BM25Index.open_or_build(store).search(["apple"], 2)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    [folder] = store.cache_folder("bm25").iterdir()
    assert store.hash in folder.name
    assert {file.suffix for file in folder.iterdir()} == {".npy", ".json"}


def test_an_index_of_other_words_is_rebuilt(make_store, monkeypatch):
    store = make_store(FRUIT)
    monkeypatch.setattr("dream.indexes.bm25.Analyzer", lambda language: lambda text: ["other"])
    monkeypatch.setattr("dream.indexes.bm25.LAYOUT", 0)
    assert BM25Index.open_or_build(store).vocabulary == {"other": 0}
    monkeypatch.undo()
    assert "apple" in BM25Index.open_or_build(store).vocabulary


def test_a_damaged_index_is_reported_and_rebuilt(make_store, capsys):
    store = make_store(FRUIT)
    BM25Index.open_or_build(store)
    [file] = store.cache_folder("bm25").glob("*/params.index.json")
    whole = file.read_bytes()
    file.write_text("{")
    with pytest.raises(DataError, match="not a complete BM25 index"):
        BM25Index(file.parent, "passage", None)
    BM25Index.open_or_build(store)
    assert f"{file}: damaged" in capsys.readouterr().out
    assert file.read_bytes() == whole


def test_each_language_and_formula_has_its_index_of_the_same_store(tmp_path, monkeypatch):
    """The store and its hash do not depend on the language."""
    found = {}
    for language in (None, "english", "german"):
        store = word_store(tmp_path, ["Tables", "Häuser", "The house"], language=language)
        index = BM25Index.open_or_build(store)
        found[language] = [word for word in ("table", "haus", "the") if index.search([word], 1)[1][0, 0] >= 0]
    assert found == {None: [], "english": ["table"], "german": ["table", "haus", "the"]}
    assert len(list((tmp_path / "stores").glob("hand-*"))) == 1
    monkeypatch.setattr("dream.indexes.bm25.K1", 0.9)
    BM25Index.open_or_build(store)
    monkeypatch.setattr("dream.indexes.bm25.B", 0.4)
    BM25Index.open_or_build(store, "document")
    names = sorted(path.name.split("-", 3)[3] for path in store.cache_folder("bm25").iterdir())
    assert names == ["english-k1.2-b0.75", "german-k0.9-b0.4-documents", "german-k0.9-b0.75", "german-k1.2-b0.75",
                     "plain-k1.2-b0.75"]  # fmt: skip
    assert pickle.loads(pickle.dumps(store)).language == "german"


@pytest.mark.parametrize("rows", [0, 3, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("matching", [0.0, 0.01, 0.5, 1.0])
def test_the_best_rows_are_those_of_a_sort(rows, matching):
    """With few distinct scores, so that many are equal, and more or fewer matches than are asked for."""
    draw = np.random.default_rng(rows)
    scores_N = np.where(draw.random(rows) < matching, draw.integers(1, 9, rows), 0).astype(np.float32)
    expected = [row for row in np.argsort(-scores_N, kind="stable").tolist() if scores_N[row] > 0]
    for k in (0, 1, 7, 70, 6000):
        scores, found = top_k(scores_N, k)
        assert found.tolist() == expected[:k]
        assert np.array_equal(scores, scores_N[found])
