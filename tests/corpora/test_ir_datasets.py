"""The catalogue of ir_datasets, with a data set registered here. Run: pytest tests/corpora/test_ir_datasets.py"""

import pytest

from dream.corpora.base import Document
from dream.corpora.ir_datasets import IrDatasetsCorpus
from dream.utils.errors import ConfigError

ir_datasets = pytest.importorskip("ir_datasets", reason="needs pip install 'dream-retrieval[ir_datasets]'")


def corpus(dataset_id: str, labels=None, text_fields=None, **changes) -> IrDatasetsCorpus:
    settings = {"deduplicate": True, "on_bad_document": "error", "max_document_mb": 1, "language": None} | changes
    return IrDatasetsCorpus("mine", dataset_id, labels, text_fields, **settings)


@pytest.fixture
def registered(tmp_path, monkeypatch) -> str:
    """The name of a data set with two documents and one labelled query."""
    (tmp_path / "docs.tsv").write_text("d1\tabout cats\nd2\tabout dogs\n")
    (tmp_path / "queries.tsv").write_text("q1\tcats\nq2\tnot labelled\n")
    (tmp_path / "qrels").write_text("q1 0 d1 2\nq1 0 d2 0\n")
    made = ir_datasets.create_dataset(
        docs_tsv=str(tmp_path / "docs.tsv"),
        queries_tsv=str(tmp_path / "queries.tsv"),
        qrels_trec=str(tmp_path / "qrels"),
    )
    monkeypatch.setitem(ir_datasets.registry._registered, "own/dev", made)
    return "own/dev"


def test_documents_queries_and_labels(registered):
    found = corpus(registered)
    assert list(found.documents()) == [Document("d1", "", "about cats"), Document("d2", "", "about dogs")]
    assert found.splits() == ["dev"]
    labels = found.labels("dev")
    assert labels.queries == {"q1": "cats"}
    assert labels.qrels == {"q1": {"d1": 2, "d2": 0}}
    assert corpus(registered, text_fields=["text"]).fingerprint() != found.fingerprint()
    assert corpus(registered, {"test": registered}).splits() == ["test"]


def test_the_catalogue_is_read_without_a_download():
    found = corpus("beir/scifact", {"dev": "beir/scifact/train", "test": "beir/scifact/test"})
    assert found.splits() == ["dev", "test"]
    assert found.size_bytes() > 1_000_000
    assert corpus("cranfield").splits() == ["test"]
    assert corpus("msmarco-passage").splits() == []


def test_mistakes_are_one_line(registered, monkeypatch):
    for dataset_id, labels, message in (
        ("no/such", None, r"corpus\.dataset_id=no/such: not in the catalogue"),
        ("beir/scifact", {"dev": "beir/scifact"}, r"corpus\.labels\.dev=beir/scifact: this data set has no queries"),
    ):
        with pytest.raises(ConfigError, match=message):
            corpus(dataset_id, labels)
    with pytest.raises(ConfigError, match=r"corpus\.text_fields=\['body'\]: choose from doc_id, text"):
        corpus(registered, text_fields=["body"])
    with pytest.raises(ConfigError, match=r"split=test: corpus mine has the splits \['dev'\]"):
        corpus(registered).labels("test")
    monkeypatch.setattr("dream.utils.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"corpus=ir_datasets: needs the package ir_datasets: .*\[ir_datasets\]"):
        corpus(registered)
