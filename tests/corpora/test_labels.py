"""Queries and relevance grades in every format. Run: pytest tests/corpora/test_labels.py"""

import json
from pathlib import Path

import pytest
from tests.corpora.conftest import COMPRESSIONS, compress, write_records

from dream.corpora.jsonl import BeirCorpus, JsonlCorpus
from dream.corpora.labels import read_labels, read_qrels, read_queries
from dream.utils.errors import DataError

QUERIES = [{"_id": "1", "text": "first, or so"}, {"_id": "q 2", "text": 'the "second"'}]
TEXTS = {"1": "first, or so", "q 2": 'the "second"'}
QRELS = [("1", "a", 2), ("1", "b", -1), ("q 2", "b c", 0)]
GRADES = {"1": {"a": 2, "b": -1}, "q 2": {"b c": 0}}


def write(file: Path, content: str | bytes, packed: str = "") -> Path:
    file.write_bytes(compress(content.encode() if isinstance(content, str) else content, packed))
    return file


@pytest.mark.parametrize("packed", COMPRESSIONS)
@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_queries(tmp_path, form, packed):
    if form == ".parquet" and packed:
        return
    file = write_records(tmp_path / f"queries{form}{packed}", QUERIES)
    assert read_queries(file, {"1", "q 2"}) == TEXTS
    assert read_queries(file, {"1"}) == {"1": TEXTS["1"]}


@pytest.mark.parametrize("name", ["_id", "id", "query-id", "query_id", "qid"])
@pytest.mark.parametrize("text", ["text", "query", "question"])
@pytest.mark.parametrize("form", [".jsonl", ".csv", ".tsv"])
def test_names_of_the_fields_of_queries(tmp_path, name, text, form):
    records = [{name: query["_id"], text: query["text"]} for query in QUERIES]
    assert read_queries(write_records(tmp_path / f"queries{form}", records), set(TEXTS)) == TEXTS


def test_queries_as_lines_of_id_and_text(tmp_path):
    """As MS MARCO's queries.dev.tsv: no header, quotes are text."""
    file = write(tmp_path / "queries.tsv", '1\tfirst, or so\nq 2\tthe "second"\n')
    assert read_queries(file, set(TEXTS)) == TEXTS


@pytest.mark.parametrize("packed", COMPRESSIONS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dev.tsv", "".join(f"{q}\t{d}\t{g}\n" for q, d, g in QRELS)),
        ("dev.tsv", "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{g}\n" for q, d, g in QRELS)),
        ("dev.qrels", "".join(f"{q}\t0\t{d}\t{g}\n" for q, d, g in QRELS)),
        ("dev.csv", "".join(f'"{q}",{d},{g}\n' for q, d, g in QRELS)),
        ("dev.csv", "".join(f"{q}\t{d}\t{g}\n" for q, d, g in QRELS)),
        ("dev.txt", "".join(f"{q},{d},{g}\n" for q, d, g in QRELS)),
        ("dev.txt", "".join(json.dumps({"query-id": q, "corpus-id": d, "score": g}) + "\n" for q, d, g in QRELS)),
        ("dev.csv", "docid;grade;qid;who\n" + "".join(f"{d};{g};{q};me\n" for q, d, g in QRELS)),
        ("dev.tsv", "docno\tqid\trel\n" + "".join(f"{d}\t{q}\t{g}\n" for q, d, g in QRELS)),
        ("dev.csv", "query-id,corpus-id,score\n" + "".join(f"{q},{d},{g}\n" for q, d, g in QRELS)),
        ("dev.jsonl", "".join(json.dumps({"query-id": q, "corpus-id": d, "score": g}) + "\n" for q, d, g in QRELS)),
        ("dev.jsonl", "".join(json.dumps({"qid": q, "docid": d, "label": f"{g}.0"}) + "\n" for q, d, g in QRELS)),
        ("dev.json", json.dumps([{"query_id": q, "corpus_id": d, "relevance": float(g)} for q, d, g in QRELS])),
    ],
)
def test_qrels(tmp_path, name, content, packed):
    assert read_qrels(write(tmp_path / f"{name}{packed}", content, packed)) == GRADES


def test_qrels_in_parquet_with_numbers_as_ids(tmp_path):
    records = [{"query-id": 7, "corpus-id": 8, "score": 1}, {"query-id": 7, "corpus-id": 9, "score": 2}]
    assert read_qrels(write_records(tmp_path / "dev.parquet", records)) == {"7": {"8": 1, "9": 2}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dev.jsonl", '{"query-id": "1", "corpus-id": "a", "score": 1}\n{"query-id": "1"}\n',
         r"dev\.jsonl:2: a label needs the fields query-id, corpus-id and score; this line has 'query-id' \(str\)$"),
        ("dev.jsonl", '{"query-id": "1", "corpus-id": "a", "score": 0.5}\n', r"dev\.jsonl:1: expected .*'1 a 0\.5'"),
        ("dev.jsonl", '{"query-id": "1", "corpus-id": "a", "score": true}\n', r"dev\.jsonl:1: a label needs"),
        ("dev.jsonl", "1\ta\t1\n", r"dev\.jsonl:1: not valid JSON"),
        ("dev.csv", "1,a,1\n1,b\n", r"dev\.csv:2: expected query-id"),
        ("dev.csv", '1,a,1\n1,"b" c,1\n', r"dev\.csv:2: not valid CSV"),
        ("dev.json", "[]", r"dev\.json: this file of labels has no line with a label"),
        ("dev.tsv", b"1\ta\t1\n1\t\xff\t1\n", r"dev\.tsv:2: not valid UTF-8"),
    ],
)  # fmt: skip
def test_bad_qrels_are_named_with_their_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_qrels(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", "_id,text\n1,one\n1,two\n", r"q\.csv:3: query '1' has another text in line 2"),
        ("q.csv", "_id,text\n1, \n", r"q\.csv:2: the text of query '1' is empty"),
        (
            "q.csv",
            "number,words\n1,one\n",
            r"q\.csv:1: none of the columns .* only \['number', 'words'\]; a query needs",
        ),
        ("q.tsv", "1\tone\n2\n", r"q\.tsv:2: no tab"),
        ("q.jsonl", '{"name": 1, "text": "one"}\n', r"q\.jsonl:1: a query needs .*'name' \(int\), 'text' \(str\)"),
        ("q.jsonl", '{"_id": 1, "text": ["one"]}\n', r"q\.jsonl:1: a query needs"),
    ],
)
def test_bad_queries_are_named_with_their_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_queries(write(tmp_path / name, content), {"1"})


def test_labels_of_a_corpus(tmp_path, monkeypatch):
    write_records(tmp_path / "c.csv", [{"_id": "a", "text": "one"}])
    write_records(tmp_path / "q.csv.gz", QUERIES)
    write(tmp_path / "dev.jsonl", '{"query-id": "1", "corpus-id": "a", "score": 1}\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    corpus = JsonlCorpus("mine", "~/c.csv", "_id", "title", ["text"], True, "~/q.csv.gz", {"dev": "~/dev.jsonl"},
                         "error", 1, None)  # fmt: skip
    assert corpus.labels("dev").queries == {"1": TEXTS["1"]}
    assert corpus.labels("dev").qrels == {"1": {"a": 1}}


def test_a_beir_folder_of_other_formats(tmp_path):
    (tmp_path / "qrels").mkdir()
    write_records(tmp_path / "corpus.jsonl.xz", [{"_id": "a", "title": "T", "text": "one"}])
    write_records(tmp_path / "queries.tsv", QUERIES)
    write(tmp_path / "qrels" / "test.jsonl", '{"query-id": "1", "corpus-id": "a", "score": 1}\n')
    write(tmp_path / "qrels" / "dev.small.tsv.bz2", "q 2\ta\t1\n", ".bz2")
    write(tmp_path / "qrels" / "README.md", "Not a file of labels.")
    corpus = BeirCorpus("b", str(tmp_path), True, "error", 1, None)
    assert [document.text for document in corpus.documents()] == ["T\none"]
    assert corpus.splits() == ["dev.small", "test"]
    assert corpus.labels("test").qrels == {"1": {"a": 1}}
    assert corpus.labels("dev.small").queries == {"q 2": TEXTS["q 2"]}
    write(tmp_path / "qrels" / "test.tsv", "1\tb\t1\n")  # BEIR's own format has priority
    corpus = BeirCorpus("b", str(tmp_path), True, "error", 1, None)
    assert corpus.labels("test").qrels == {"1": {"b": 1}}


def test_every_query_of_the_labels_needs_a_text(tmp_path):
    write_records(tmp_path / "q.csv", QUERIES)
    write(tmp_path / "dev.csv", "1,a,1\n9,a,1\n")
    with pytest.raises(DataError, match=r"dev\.csv: 1 queries are not in .*q\.csv, the first is '9'"):
        read_labels(tmp_path / "q.csv", tmp_path / "dev.csv")


def test_one_line_says_what_was_read(tmp_path, caplog):
    queries = write_records(tmp_path / "queries.csv", QUERIES)
    qrels = write(tmp_path / "dev.qrels", "1 0 a 2\n1 0 b -1\n")
    with caplog.at_level("INFO", logger="dream"):
        read_labels(queries, qrels)
        read_labels(queries, qrels)
    assert caplog.messages == ["Labels: 2 grades of 1 queries from dev.qrels (tsv) and queries.csv (csv)"]
