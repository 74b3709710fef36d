"""Labelled pairs in place of windows. Run: pytest tests/data/test_labelled_datamodule.py"""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from dream.build import build_module, build_text
from dream.commands.train import train
from dream.corpora.base import Labels
from dream.data.labelled_datamodule import relevant_documents, unshared
from dream.store.store import ENCODER
from dream.utils.errors import ConfigError, DataError
from dream.utils.runtime import CONFIG_DIR


@pytest.fixture
def config(corpus_folder, llama_folder, tmp_path):
    """A tiny supervised run: 60 queries to train on, the others for evaluation."""
    lines = (corpus_folder / "dev.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "train.tsv").write_text("".join(lines[:61]))
    (tmp_path / "dev.tsv").write_text("".join([lines[0], *lines[61:]]))

    def make(*overrides: str):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(
                "train",
                [
                    "experiment=supervised", "corpus=jsonl", f"corpus.path={corpus_folder / 'corpus.jsonl'}",
                    f"corpus.queries={corpus_folder / 'queries.jsonl'}", "corpus.text_fields=[text]",
                    f"corpus.qrels={{train: {tmp_path / 'train.tsv'}, dev: {tmp_path / 'dev.tsv'}}}",
                    "evaluation.report_split=dev", "scorer=hf", f"scorer.name={llama_folder}",
                    f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}",
                    f"paths.run={tmp_path / 'logs' / 'run'}", "data.batch_size=16", "data.passage_tokens=24",
                    "data.context_tokens=12", "data.min_context_tokens=6", "data.target_tokens=8",
                    "encoder.random_width=32", "trainer.max_steps=30", "trainer.accelerator=cpu",
                    "+trainer.enable_progress_bar=false", "callbacks.progress=null",
                    "callbacks.index_refresh.every_n_steps=0", "callbacks.evaluation.every_n_steps=0",
                    "callbacks.best_checkpoint=null", *overrides,
                ],
            )  # fmt: skip

    return make


def test_every_query_once_an_epoch_with_its_own_document(config, corpus):
    data = build_text(config("data.batch_size=20")).data
    stream = data.stream(0, 1)
    labels = corpus.labels("dev")
    names = data.store.document_names
    tokenize = data.tokenizers[ENCODER]
    query_of = {tuple(tokenize(t, add_special_tokens=False)["input_ids"]): q for q, t in labels.queries.items()}
    seen = []
    for number in range(3):
        batch = stream.batch(number)
        for context, mask, document in zip(
            batch.context.ids_BT, batch.context.mask_BT, batch.document_ids_B, strict=True
        ):
            query = query_of[tuple(context[mask].tolist())]
            assert labels.qrels[query] == {names[int(document)]: 1}
            seen.append(query)
    assert sorted(seen) == sorted(f"q{number}" for number in range(60))
    assert stream.batch(7).consumed == 160
    again = data.stream(0, 1).batch(1)
    assert np.array_equal(again.context.ids_BT, stream.batch(1).context.ids_BT)


def test_long_queries_keep_their_beginning_as_in_a_search(config):
    data = build_text(config()).data
    stream = data.stream(0, 1)
    stream.max_query_tokens = 1
    whole = [stream.queries[q] for q in stream.batch(0).window_ids_B.tolist()]
    assert max(map(len, whole)) > 1
    assert stream.batch(0).context.ids_BT[:, 0].tolist() == [int(query[0]) for query in whole]


def test_best_passage_holds_the_query_and_first_is_first(config):
    """A query's two words stand at the end of its document alone, sometimes in the first passage too."""
    best = build_text(config()).data
    first = build_text(config("data.passage=first")).data
    store = best.store
    starts = np.searchsorted(store.passage_documents, np.arange(80))
    passages = best.pairs[1]
    assert [int(rows[0]) for rows in first.pairs[1]] == starts[:60].tolist()
    assert any(int(rows[0]) not in starts for rows in passages)
    labels = best.corpus.labels("train")
    for text, rows in zip(labels.queries.values(), passages, strict=True):
        assert set(text.split()) <= set(store.passage_text(int(rows[0])).split())


def test_what_another_split_asks_is_not_trained_on():
    train_split = Labels(
        {"a": "how to swim", "b": "What is  Rust?", "c": "why"}, {"a": {"d": 1}, "b": {"d": 1}, "c": {"d": 1}}
    )
    test_split = Labels({"a": "other words", "x": "what is rust?"}, {"a": {"d": 1}, "x": {"e": 1}})
    assert unshared(train_split, [test_split]) == ["c"]


def test_only_relevant_documents_that_are_there(store):
    labels = Labels({"a": "x", "b": "y"}, {"a": {"d3": 1, "d2": 2, "d4": 0, "nowhere": 1}, "b": {"nowhere": 1}})
    rows = store.rows_of(["d2", "d3"])
    assert relevant_documents(labels, ["a", "b"], store) == {"a": sorted(rows.values())}


def test_a_supervised_run_learns_and_reports(config, capsys):
    train(config())
    printed = capsys.readouterr().out
    assert "Training on 60 labelled queries of split train; left out: 0 that another split also has" in printed


def test_it_refuses_what_it_cannot_do(config):
    cfg = config("objective=kl_posterior")
    parts = build_text(cfg)
    with pytest.raises(ConfigError, match="objective=.*needs targets for the language model"):
        build_module(cfg, parts)
    with pytest.raises(InstantiationException, match="data.split=test: corpus jsonl has train, dev"):
        build_text(config("data.split=test"))
    with pytest.raises(DataError, match="60 queries to train on, fewer than"):
        _ = build_text(config("data.batch_size=64")).data.pairs
