"""Data sets of the library `datasets`. Run: pytest tests/corpora/test_hf_dataset.py"""

import json

import pytest

from dream.corpora.base import Document
from dream.corpora.hf_dataset import HFDatasetCorpus
from dream.utils.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets", reason="needs pip install 'dream-retrieval[datasets]'")

ROWS = [
    {"_id": "a", "title": "T", "text": "one", "picture": 1},
    {"_id": "b", "title": None, "text": "two", "picture": 2},
]
DOCUMENTS = [Document("a", "T", "T\none"), Document("b", "", "two")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def corpus(dataset, **changes) -> HFDatasetCorpus:
    settings = {
        "name": "mine", "dataset": str(dataset), "subset": None, "split": "train", "revision": None,
        "streaming": False, "id_field": "_id", "title_field": "title", "text_fields": ["title", "text"],
        "deduplicate": True, "queries": None, "qrels": None, "on_bad_document": "error", "max_document_mb": 1,
        "language": None,
    }  # fmt: skip
    return HFDatasetCorpus(**(settings | changes))


@pytest.fixture(params=["parquet", "jsonl", "saved", "saved splits"])
def folder(request, tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    rows = datasets.Dataset.from_list(ROWS)
    if request.param == "parquet":
        rows.to_parquet(path / "train.parquet")
    elif request.param == "jsonl":
        (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif request.param == "saved":
        rows.save_to_disk(path)
    else:
        datasets.DatasetDict({"train": rows, "dev": rows.select([0])}).save_to_disk(path)
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_local_folder(folder, streaming):
    found = corpus(folder, streaming=streaming)
    assert list(found.documents()) == DOCUMENTS
    assert found.size_bytes() > 0
    assert found.fingerprint() == corpus(folder, streaming=not streaming).fingerprint()
    assert found.fingerprint() != corpus(folder, text_fields=["text"]).fingerprint()


def test_a_part_of_a_split(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "data" / "train.parquet")
    assert list(corpus(tmp_path / "data", split="train[:1]").documents()) == DOCUMENTS[:1]


def test_mistakes_are_one_line(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=r"data\[train\]: none of the columns \['body'\] is there, only"):
        list(corpus(tmp_path / "data", text_fields=["body"]).documents())
    with pytest.raises(ConfigError, match=r"corpus\.split=dev: .*train"):
        list(corpus(tmp_path / "data", split="dev").documents())
    with pytest.raises(ConfigError, match=r"corpus\.dataset=nobody/nothing: no such folder, and not on the hub"):
        corpus("nobody/nothing").fingerprint()


def test_a_missing_split_of_a_saved_folder(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"corpus\.split=dev: choose one of train"):
        list(corpus(tmp_path / "data", split="dev").documents())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_file_is_named(tmp_path, streaming):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"_id": "a", "text": "one"}\n{"_id": oops}\n')
    with pytest.raises(DataError, match=r"data\[train\].*cannot be read"):
        list(corpus(tmp_path / "data", streaming=streaming).documents())


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("dream.utils.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"corpus=hf_dataset: needs the package datasets: .*\[datasets\]"):
        corpus(tmp_path)
