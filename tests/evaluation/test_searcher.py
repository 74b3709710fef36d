"""The Python API `dream.load`, and dream-search. Run: pytest tests/evaluation/test_searcher.py"""

import json
import sys

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import dream
from dream.commands import search as command
from dream.evaluation.searcher import MODES, Hit, Searcher
from dream.indexes.faiss import FaissIndex
from dream.utils.errors import ConfigError, DataError
from dream.utils.runtime import CONFIG_DIR


@pytest.fixture(scope="module")
def searcher(world) -> Searcher:
    return dream.load(world / "logs/sweep/0")


@pytest.fixture(scope="module")
def queries(corpus_folder) -> dict[str, str]:
    """Each query is two words that only the document of the same number has."""
    lines = (corpus_folder / "queries.jsonl").read_text().splitlines()
    return {query["_id"]: query["text"] for query in map(json.loads, lines)}


def search_config(run, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("search", ["paths.run=unused", f"run={run}", *overrides])


@pytest.mark.parametrize("side", ["queries", "documents"])
def test_texts_become_unit_vectors(searcher, queries, side):
    """(texts, D) float32, row by row the same as one by one."""
    encode, texts = getattr(searcher, f"encode_{side}"), list(queries.values())[:5]
    vectors_BD = encode(texts)
    assert isinstance(vectors_BD, np.ndarray)
    assert vectors_BD.shape == (5, searcher.encoder.width)
    assert vectors_BD.dtype == np.float32
    assert np.linalg.norm(vectors_BD, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert vectors_BD == pytest.approx(np.concatenate([encode([text]) for text in texts]), abs=1e-6)
    assert encode([]).shape == (0, searcher.encoder.width)


def test_a_dense_score_is_the_inner_product_with_the_best_passage(searcher, queries):
    store, text = searcher.store, queries["q7"]
    passages_ND = searcher.encode_documents([store.passage_text(row) for row in range(len(store.passages))])
    sim_N = passages_ND @ searcher.encode_queries([text])[0]
    best = {row: sim_N[store.passage_documents == row].max() for row in range(len(store.document_names))}
    expected = {store.document_names[row]: sim for row, sim in best.items()}
    hits = searcher.search(text, k=80)
    assert len(hits) == 80
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.id], abs=2e-3)


def test_one_query_finds_the_passages_of_flat(searcher, queries):
    """A run that was trained with `Flat` is searched with an index of half the size."""
    handle = searcher.run.index
    assert (searcher.run.cfg.index.factory, handle.index.factory) == ("Flat", "SQfp16")
    flat = FaissIndex("Flat")
    flat.build(handle.current.embeddings, handle.current.count, handle.current.width)
    query_QD = searcher.encoder.embed_queries(list(queries.values()))
    sim_QK, ids_QK = flat.search(query_QD, k=20)
    for row, query_D in enumerate(query_QD):
        sim_1K, ids_1K = handle.search(query_D[None], k=20)
        torch.testing.assert_close(sim_1K[0], sim_QK[row])
        assert torch.equal(ids_1K[0], ids_QK[row])


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_finds_documents_in_order(searcher, queries, corpus_folder, mode):
    documents = {line["_id"]: line for line in map(json.loads, (corpus_folder / "corpus.jsonl").open())}
    hits = searcher.search(queries["q3"], k=4, mode=mode)
    assert 1 <= len(hits) <= 4
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert isinstance(hit, Hit)
        assert (hit.title, hit.text) == (documents[hit.id]["title"], documents[hit.id]["text"])
    if mode != "dense":
        assert hits[0].id == "d3"
    assert hits == searcher.search(queries["q3"], k=80, mode=mode)[:4]


def test_the_ranking_is_that_of_dream_evaluate(searcher, config, queries, tmp_path):
    from dream.commands.evaluate import evaluate

    evaluate(config("systems=[bm25,run,hybrid]", "split=dev"))
    labelled = {f"q{number}" for number in range(30)}
    for system, mode in (("run", "dense"), ("bm25", "bm25"), ("hybrid", "hybrid")):
        lines = (tmp_path / "evaluation" / "runs" / f"{system}.run").read_text().splitlines()
        ranked: dict[str, list[str]] = {}
        for query, _, document, *_ in map(str.split, lines):
            ranked.setdefault(query, []).append(document)
        assert set(ranked) == labelled
        for query in ("q0", "q11", "q29"):
            assert [hit.id for hit in searcher.search(queries[query], k=10, mode=mode)] == ranked[query][:10]


@pytest.mark.parametrize("mode", MODES)
def test_dream_search_prints_the_same_ranking(searcher, world, queries, capsys, mode):
    command.search(search_config(world / "logs/sweep/0", f"query={queries['q5']}", "k=3", f"mode={mode}"))
    printed = capsys.readouterr().out
    assert f"corpus jsonl, mode {mode}" in printed
    hits = searcher.search(queries["q5"], k=3, mode=mode)
    found = [line.split()[1] for line in printed.splitlines() if line.strip().startswith(("1. ", "2. ", "3. "))]
    assert found == [hit.id for hit in hits]


def test_dream_search_asks_for_questions_until_an_empty_line(world, queries, capsys, monkeypatch):
    answers = iter([queries["q5"], queries["q6"], ""])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    command.search(search_config(world / "logs/sweep/0", "k=1", "mode=bm25"))
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith(" 1. ")] == ["d5", "d6"]


def test_words_of_the_command_line_are_the_query(world, queries, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [*queries["q9"].split(), "it's", r"\d+", "${name}"]
    monkeypatch.setattr(sys, "argv", ["dream-search", *words, f"run={world / 'logs/sweep/0'}", "k=1", "mode=bm25"])
    command.main()
    assert " 1. d9 " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_reported_in_one_line(searcher, world, tmp_path):
    with pytest.raises(ConfigError, match="mode=sparse: choose dense, bm25, hybrid"):
        searcher.search("words", mode="sparse")
    with pytest.raises(ConfigError, match="k=0: at least 1 result"):
        searcher.search("words", k=0)
    with pytest.raises(ConfigError, match="mode=sparse: choose"):
        command.search(search_config(world / "logs/sweep/0", "mode=sparse"))
    with pytest.raises(ConfigError, match="no run is there; train one"):
        dream.load(tmp_path)


def test_an_encoder_of_an_own_package_needs_trust(run_of_an_own_encoder, searcher, queries, capsys):
    with pytest.raises(DataError, match=r"add trust=\[my_encoders\]"):
        dream.load(run_of_an_own_encoder)
    own = dream.load(run_of_an_own_encoder, trust=["my_encoders"])
    assert type(own.encoder).__name__ == "MyEncoder"
    assert own.search(queries["q1"], k=3) == searcher.search(queries["q1"], k=3)
    chosen = [f"query={queries['q1']}", "k=1"]
    with pytest.raises(DataError, match=r"add trust=\[my_encoders\]"):
        command.search(search_config(run_of_an_own_encoder, *chosen))
    command.search(search_config(run_of_an_own_encoder, *chosen, "trust=[my_encoders]"))
    assert f" 1. {own.search(queries['q1'], k=1)[0].id} " in capsys.readouterr().out


def test_a_run_whose_data_was_moved_is_found_below_paths_data(moved, searcher, queries, capsys):
    """The run's config names a folder that no longer exists; `data`, or the command's paths.data, is the new one."""
    run = moved / "logs/sweep/0"
    elsewhere = moved / "caches" / "of" / "mine"
    elsewhere.parent.mkdir(parents=True)
    beside = Searcher(run)  # data/ beside logs/
    assert beside.store.path.parent == moved / "data" / "stores"
    (moved / "data").rename(elsewhere)
    with pytest.raises(DataError, match="is not there; name its data folder with paths.data=FOLDER"):
        Searcher(run)
    found = Searcher(run, data=elsewhere)
    assert found.store.path.parent == elsewhere / "stores"
    assert found.corpus_name == searcher.corpus_name == "jsonl"
    assert found.search(queries["q1"], k=3, mode="hybrid") == searcher.search(queries["q1"], k=3, mode="hybrid")
    command.search(search_config(run, f"paths.data={elsewhere}", f"query={queries['q1']}", "k=1", "mode=bm25"))
    assert " 1. d1 " in capsys.readouterr().out
