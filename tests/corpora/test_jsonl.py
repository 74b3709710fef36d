"""JSON lines and BEIR folders. Run: pytest tests/corpora/test_jsonl.py"""

import gzip
import json
from pathlib import Path

import pytest

from dream.corpora.base import Document
from dream.corpora.jsonl import BeirCorpus, JsonlCorpus
from dream.utils.errors import ConfigError, DataError

GOOD = '{"_id": "a", "title": "T", "text": "one"}\n'


def jsonl(file: Path, content: str | bytes | None = None, **changes) -> JsonlCorpus:
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    settings = {
        "name": "mine",
        "path": str(file),
        "id_field": "_id",
        "title_field": "title",
        "text_fields": ["title", "text"],
        "deduplicate": True,
        "queries": None,
        "qrels": None,
        "on_bad_document": "error",
        "max_document_mb": 1,
        "language": None,
    }
    return JsonlCorpus(**(settings | changes))


def test_fields_are_joined_and_kinds_of_ids_accepted(tmp_path):
    corpus = jsonl(
        tmp_path / "c.jsonl",
        GOOD
        + '{"_id": 7, "title": null, "text": " two "}\n\n'
        + '{"title": 3.5, "body": "", "text": "three"}\n'
        + '{"_id": null, "text": null}\n',
        text_fields=["text", "body"],
    )
    assert list(corpus.documents()) == [
        Document("a", "T", "one"),
        Document("7", "", "two"),
        Document("4", "3.5", "three"),  # no id: the line number
        Document("5", "", ""),
    ]
    both = jsonl(tmp_path / "c.jsonl", GOOD)
    assert next(both.documents()).text == "T\none"


@pytest.mark.parametrize("content", [GOOD.encode(), b"\xef\xbb\xbf" + GOOD.encode(), GOOD.strip().encode() + b"\r\n"])
def test_byte_order_marks_and_line_ends(tmp_path, content):
    assert list(jsonl(tmp_path / "c.jsonl", content).documents()) == [Document("a", "T", "T\none")]


def test_line_separators_inside_a_text_are_no_line_ends(tmp_path):
    line = json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False)
    assert [d.text for d in jsonl(tmp_path / "c.jsonl", line).documents()] == ["a\u2028b\x85c"]


def test_lone_surrogates_become_question_marks(tmp_path):
    content = '{"_id": "\\ud800", "text": "x\\udfffy \\ud83d\\ude00"}'
    assert list(jsonl(tmp_path / "c.jsonl", content).documents()) == [Document("?", "", "x?y 😀")]


def test_gzip(tmp_path):
    corpus = jsonl(tmp_path / "c.jsonl.gz", gzip.compress(GOOD.encode() * 2, mtime=0))
    assert [d.id for d in corpus.documents()] == ["a", "a"]


def test_empty_file(tmp_path):
    assert list(jsonl(tmp_path / "c.jsonl", "").documents()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", GOOD + "{oops}\n", r"c\.jsonl:2: not valid JSON"),
        ("c.jsonl", GOOD + "\n[1]\n", r"c\.jsonl:3: a JSON object is needed here, not list"),
        ("c.jsonl", GOOD * 999 + '{"text": ' + "9" * 5000 + "}", r"c\.jsonl:1000: not valid JSON .*digits"),
        ("c.jsonl", GOOD.encode() * 4 + b'{"text": "\xff"}\n' + GOOD.encode() * 999, r"c\.jsonl:5: not valid UTF-8"),
        ("c.jsonl", GOOD.encode("utf-16"), r"c\.jsonl:1: not valid UTF-8"),
        ("c.jsonl", '{"texts": "a"}\n', r"c\.jsonl:1: none of the fields .*'text'.* only \['texts'\]; .*text_fields"),
        ("c.jsonl", '{"text": ["a", 1]}\n', r"c\.jsonl:1: field 'text' is a list with int, not text"),
        ("c.jsonl.gz", GOOD, r"c\.jsonl\.gz:1: damaged gzip"),
        ("c.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-9], r"c\.jsonl\.gz:\d: damaged gzip"),
    ],
)
def test_bad_content_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        list(jsonl(tmp_path / name, content).documents())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere.jsonl"}, "corpus.path=nowhere.jsonl: no such file"),
        ({"path": None}, "corpus.path=null: the path of a file is needed"),
        ({"path": "."}, "corpus.path=.: this is a folder, but a file is needed"),
        ({"text_fields": []}, "corpus.text_fields"),
        ({"qrels": {"dev": "no.tsv"}}, "corpus.qrels.dev=no.tsv: no such file"),
    ],
)
def test_bad_settings_name_their_key(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        jsonl(tmp_path / "c.jsonl", GOOD, **changes)


def test_qrels_need_queries(tmp_path):
    (tmp_path / "dev.tsv").write_text("q\ta\t1\n")
    with pytest.raises(ConfigError, match="corpus.queries"):
        jsonl(tmp_path / "c.jsonl", GOOD, qrels={"dev": str(tmp_path / "dev.tsv")})


def beir(folder: Path, qrels: str, queries: str = '{"_id": 1, "text": "first"}\n{"_id": "q 2", "text": "second"}\n'):
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(GOOD)
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_bytes(qrels.encode())
    return BeirCorpus("b", str(folder), True, "error", 1, None)


@pytest.mark.parametrize(
    "qrels",
    [
        "1\ta\t2\nq 2\tb c\t0\n",
        "query-id\tcorpus-id\tscore\n1\ta\t2\nq 2\tb c\t0\n",
        "qid\tdocid\tlabel\r\n1\ta\t2\r\nq 2\tb c\t0\r\n\r\n",
        "\ufeffquery-id\tcorpus-id\tscore\n1\ta\t2.0\nq 2\tb c\t0",
        "1\t0\ta\t2\nq 2\tQ0\tb c\t0\n",
    ],
)
def test_qrels_with_and_without_header(tmp_path, qrels):
    labels = beir(tmp_path, qrels).labels("test")
    assert labels.queries == {"1": "first", "q 2": "second"}
    assert labels.qrels == {"1": {"a": 2}, "q 2": {"b c": 0}}


def test_trec_qrels_separated_by_spaces(tmp_path):
    assert beir(tmp_path, "1 0 a 2\n1 0 b -1\n").labels("test").qrels == {"1": {"a": 2, "b": -1}}


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("1\ta\t1\n1\ta\n", r"test\.tsv:2: expected query-id, corpus-id and an integer"),
        ("1\ta\t1\n1\ta\thigh\n", r"test\.tsv:2: expected"),
        ("1\ta\t0.5\n", r"test\.tsv:1: expected"),
        ("1\ta\t1\n1\tb\t1e9\n", r"test\.tsv:2: expected .* up to 1000"),
        ("1\ta\t1\n1\ta\t1\n1\ta\t2\n", r"test\.tsv:3: query '1' and document 'a' have grade 2 here and 1"),
        ("query-id\tcorpus-id\tscore\n", r"test\.tsv: .*no line with a label"),
        ("9\ta\t1\n", r"1 queries are not in .*queries\.jsonl, the first is '9'"),
    ],
)
def test_bad_qrels(tmp_path, qrels, message):
    with pytest.raises(DataError, match=message):
        beir(tmp_path, qrels).labels("test")


def test_bad_queries(tmp_path):
    with pytest.raises(DataError, match=r"queries\.jsonl:1: a query needs the fields _id and text"):
        beir(tmp_path, "1\ta\t1\n", '{"_id": "1"}\n').labels("test")


def test_splits_are_the_files_and_others_are_refused(tmp_path):
    corpus = beir(tmp_path, "1\ta\t1\n")
    assert corpus.splits() == ["test"]
    with pytest.raises(ConfigError, match=r"split=dev: corpus b has the splits \['test'\]"):
        corpus.labels("dev")


def test_beir_without_labels_or_corpus(tmp_path):
    with pytest.raises(ConfigError, match=r"no corpus\.jsonl"):
        BeirCorpus("b", str(tmp_path), True, "error", 1, None)
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(GOOD.encode(), mtime=0))
    corpus = BeirCorpus("b", str(tmp_path), True, "error", 1, None)
    assert corpus.splits() == []
    assert [d.text for d in corpus.documents()] == ["T\none"]
    with pytest.raises(ConfigError, match="this is a file, but a folder is needed"):
        BeirCorpus(
            "b",
            str(tmp_path / "corpus.jsonl.gz"),
            deduplicate=True,
            on_bad_document="error",
            max_document_mb=1,
            language=None,
        )


def test_the_fingerprint_follows_content_and_fields(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", GOOD).fingerprint()
    assert first == jsonl(tmp_path / "b.jsonl", GOOD, name="other").fingerprint()
    assert first != jsonl(tmp_path / "b.jsonl", GOOD, text_fields=["text"]).fingerprint()
    assert first != jsonl(tmp_path / "b.jsonl", GOOD + "\n").fingerprint()
