"""The same documents in every format, and the errors of broken files. Run: pytest tests/corpora/test_formats.py"""

import csv
import json
import os
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import LENGTHS
from tests.corpora.conftest import COMPRESSIONS, compress, write_records

from dream.corpora import source_file
from dream.corpora.bad_documents import BadDocumentPolicy
from dream.corpora.base import Document
from dream.corpora.jsonl import JsonlCorpus
from dream.corpora.readers import parquet as parquet_module
from dream.corpora.readers.json_array import _ArraySplitter
from dream.corpora.text import TextCorpus
from dream.store.build import open_or_build
from dream.utils.errors import ConfigError, DataError

EXAMPLES = int(os.environ.get("DREAM_EXAMPLES", "30"))
arbitrary = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
FORMATS = [form + packed for form in (".jsonl", ".json", ".csv", ".tsv") for packed in COMPRESSIONS] + [".parquet"]


def corpus(file, policy="error", **changes) -> JsonlCorpus:
    options = {"name": "mine", "path": str(file), "id_field": "_id", "title_field": "title",
               "text_fields": ["title", "text"], "deduplicate": True, "queries": None, "qrels": None,
               "max_document_mb": 1, "language": None}  # fmt: skip
    return JsonlCorpus(**(options | changes), on_bad_document=policy)


def records_of(*texts: str) -> list[dict]:
    return [{"_id": f"d{n}", "title": f"Title {n}", "text": text} for n, text in enumerate(texts)]


def skipped(found: JsonlCorpus) -> tuple[list[str], list[tuple[int, str]]]:
    """(texts of the good documents, (line, reason) of the bad ones)"""
    bad: list[tuple[int, str]] = []
    texts = [document.text for document in found.documents(lambda b: bad.append((b.line, b.reason)))]
    return texts, bad


# A byte order mark or a carriage return inside a text is kept by JSON, but not by CSV.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\r"), max_size=30)
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\r\n\t"), max_size=30)


@arbitrary
@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_the_same_documents_in_every_format(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("formats")
    records = [{"_id": f"d{n}", "title": title, "text": text} for n, (title, text) in enumerate(pairs)]
    expected = [
        Document(record["_id"], record["title"], "\n".join(filter(None, map(str.strip, pair))))
        for record, pair in zip(records, pairs, strict=True)
    ]
    assert list(corpus(write_records(folder / "a.jsonl", records)).documents()) == expected
    assert list(corpus(write_records(folder / "a.json", records)).documents()) == expected
    assert list(corpus(write_records(folder / "b.json", records, indent=1)).documents()) == expected
    assert list(corpus(write_records(folder / "a.csv", records)).documents()) == expected
    assert list(corpus(write_records(folder / "b.csv", records, delimiter=";")).documents()) == expected
    assert list(corpus(write_records(folder / "a.parquet", records, row_group_size=2)).documents()) == expected


@arbitrary
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=6))
def test_the_same_documents_as_tab_separated_values(tmp_path_factory, pairs):
    """With a header and quotes where Python's csv writes them, and, as MS MARCO does, without both."""
    folder = tmp_path_factory.mktemp("formats")
    records = [{"_id": f"d{n}", "title": title, "text": text} for n, (title, text) in enumerate(pairs)]
    lines = list(corpus(write_records(folder / "a.jsonl", records)).documents())
    assert list(corpus(write_records(folder / "a.tsv", records)).documents()) == lines
    raw = folder / "raw.tsv"
    raw.write_text("".join(f"{record['_id']}\t{record['text']}\n" for record in records), newline="")
    assert [(d.id, d.text) for d in corpus(raw).documents()] == [(r["_id"], r["text"].strip()) for r in records]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_store(tmp_path, tokenizer, suffix):
    texts = [f'dana "fogu", lemi {n} {"bora tiko nafe; " * 9}' for n in range(5)]
    stores = [
        open_or_build(tmp_path / "stores", corpus(write_records(tmp_path / f"c{end}", records_of(*texts))),
                      tokenizer, tokenizer, **LENGTHS)
        for end in (".jsonl", suffix)
    ]  # fmt: skip
    assert len(stores[0].windows) > 5
    for name in ("texts", "ids", "titles", "passages", "windows", "encoder_ids"):
        contents = [(store.path / f"{name}.bin").read_bytes() for store in stores]
        assert contents[0] == contents[1], name


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_corpus_that_was_moved_has_the_same_fingerprint(tmp_path, suffix, monkeypatch):
    first = write_records(tmp_path / f"c{suffix}", records_of("one", "two"))
    before = corpus(first).fingerprint()
    (tmp_path / "elsewhere").mkdir()
    moved = first.rename(tmp_path / "elsewhere" / f"d{suffix}")
    assert corpus(moved).fingerprint() == before
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert corpus(f"d{suffix}").fingerprint() == before
    assert corpus(f"~/elsewhere/d{suffix}").fingerprint() == before


def test_text_that_was_moved_has_the_same_fingerprint(tmp_path, monkeypatch):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "one.txt").write_text("one")

    def fingerprint(path: str) -> dict:
        return TextCorpus("mine", path, "*.txt", "lines", True, "error", 1, None).fingerprint()

    before, of_one_file = fingerprint(str(tmp_path / "a")), fingerprint(str(tmp_path / "a" / "sub" / "one.txt"))
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "b")
    assert fingerprint("~/b") == fingerprint(".") == before
    assert fingerprint("sub/one.txt") == of_one_file


@pytest.mark.parametrize("packed", COMPRESSIONS[1:])
@pytest.mark.parametrize("name", ["c.jsonl{}", "c.jsonl", "c"])
def test_compression_is_recognised_by_content(tmp_path, packed, name):
    file = tmp_path / name.format(packed)
    file.write_bytes(compress(b'{"_id": "a", "text": "one"}\n', packed))
    assert [d.text for d in corpus(file).documents()] == ["one"]
    text = TextCorpus("mine", str(file), "*", "lines", True, "error", 1, None)
    assert [d.text for d in text.documents()] == ['{"_id": "a", "text": "one"}']


@pytest.mark.parametrize("packed", COMPRESSIONS[1:])
@pytest.mark.parametrize("damage", ["cut short", "zeros in the middle", "not compressed", "two files joined"])
def test_damaged_compressed_files(tmp_path, packed, damage):
    lines = [json.dumps({"_id": str(n), "text": os.urandom(20).hex()}).encode() for n in range(9000)]
    content = compress(b"\n".join(lines), packed)
    middle = len(content) // 2
    content = {
        "cut short": content[:middle],
        "zeros in the middle": content[:middle] + bytes(99) + content[middle + 99 :],
        "not compressed": b"\n".join(lines),
        "two files joined": content + compress(b"\n" + lines[0], packed),
    }[damage]
    file = tmp_path / f"c.jsonl{packed}"
    file.write_bytes(content)
    found = corpus(file, "skip")
    found.fingerprint()
    if damage == "two files joined":
        assert len(list(found.documents())) == 9001
        return
    with pytest.raises(DataError, match=rf"c\.jsonl\{packed}:\d+: damaged \w+ file .*[\d,]+ whole lines are before"):
        list(found.documents())


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_changed_after_its_fingerprint_was_taken(tmp_path, suffix):
    file = write_records(tmp_path / f"c{suffix}", records_of("one", "two", "three"))
    found = corpus(file)
    found.fingerprint()
    assert len(list(found.documents())) == 3
    write_records(file, records_of("one", "two", "threee"))
    with pytest.raises(DataError, match=r"c\..*: changed between"):
        list(found.documents())


BROKEN = [  # name of the file, its content, policy, the error
    ("c.csv", '_id,text\na,one\nb,"two" more\nc,three\n', r"c\.csv:3: not valid CSV"),
    ("c.csv", '_id,text\na,one\nb,two,2\n', r"c\.csv:3: 3 cells, but the header in line 1 has 2 columns"),
    ("c.csv", '_id,text\na,"one\nmore"\nb\n', r"c\.csv:4: 1 cells, but"),
    ("c.csv", '_id,text\na,one\nb,"never closed\nc,three\n', r"c\.csv:3: not valid CSV"),
    ("c.csv", "id,contents\na,one\n", r"c\.csv:1: none of the columns .*only \['id', 'contents'\]; .*text_fields"),
    ("c.csv", "a," + "one " * 99 + "\nb,two\n", r"c\.csv:1: none of the columns .*only \['a', '[one ]{40}'\]; name"),
    ("c.csv", "text,text\na,one\n", r"c\.csv:1: two columns have the name 'text'"),
    ("c.csv", b"_id,text\na,one\nb,f\xfcr\n", r"c\.csv:3: not valid UTF-8"),
    ("c.csv", b"_id,text\na,one\nb," + b"x" * 2_000_000, r"c\.csv:3: longer than corpus\.max_document_mb=1"),
    ("c.csv", b'_id,text\na,one\nb,"' + b"x\n" * 600_000, r"c\.csv:3: longer than corpus\.max_document_mb=1"),
    ("c.tsv", "a\tone\nb two\n", r"c\.tsv:2: no tab, but line 1 is an id, a tab and a text"),
    ("c.tsv", "_id\ttext\na\tone\nb\n", r"c\.tsv:3: 1 cells, but the header"),
    ("c.tsv", "a\turl\tname\tbody\n", r"c\.tsv:1: none of the columns"),
    ("c.tsv", b"_id\ttext\na\tf\xfcr\n", r"c\.tsv:2: not valid UTF-8"),
    ("c.json", '[{"text": "a"}, {"text": NaN}]', r"c\.json:2: not valid JSON \(NaN is not JSON"),
    ("c.json", '[{"text": "a"}, 7]', r"c\.json:2: a JSON object is needed here, not int"),
    ("c.json", '[{"text": "a"},]', r"c\.json:2: not valid JSON"),
    ("c.json", '[{"text": "a"}, {"text": "b"', r"c\.json:2: the JSON array does not end: .* after 1 whole elements"),
    ("c.json", '[{"text": "a"}]\n[{"text": "b"}]', r"c\.json:1: more text follows the end of the JSON array"),
    ("c.json", b'[{"text": "a"}, {"text": "\xff"}]', r"c\.json:2: not valid UTF-8"),
    ("c.json", '[{"text": "a"}, {"text": "' + "x" * 2_000_000 + '"}]', r"c\.json:2: longer than corpus\.max_document"),
    ("c.json", '{"data": [\n{"text": "a"}]}', r"c\.json:1: not valid JSON .*\.json \(one array\)"),
    ("c.jsonl", '[{"text": "a"},\n{"text": "b"}]', r"c\.jsonl:1: not valid JSON .*\.json \(one array\)"),
    ("c.jsonl", "plain text\n", r"c\.jsonl:1: not valid JSON .*plain text is read by corpus=text"),
    ("c.jsonl", '{"text": "a"}\n'.encode("utf-16"), r"c\.jsonl:1: not valid UTF-8 .*iconv -f UTF-16 -t UTF-8"),
    ("c.jsonl", b"PK\x03\x04" + bytes(99), r"c\.jsonl:1: this is a zip archive or an Excel workbook, .*unpack it"),
    ("c.jsonl", b"ARROW1\0\0" + bytes(99), r"c\.jsonl:1: this is an Arrow file"),
    ("c.jsonl", b"version https://git-lfs.github.com/spec/v1\n", r"c\.jsonl:1: this is a Git LFS .*git lfs pull"),
    ("c.jsonl.gz", compress(bytes(257) + b"ustar\0" + bytes(99), ".gz"), r"c\.jsonl\.gz:1: this is a tar archive"),
    ("c.parquet", b"PAR1" + bytes(99), r"c\.parquet:1: damaged or unreadable Parquet file"),
    ("c.parquet", b"no Parquet at all", r"c\.parquet:1: damaged or unreadable Parquet file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named_with_their_line(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as stopped:
        list(corpus(tmp_path / name).documents())
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    ("name", "content", "texts", "bad"),
    [
        ("c.csv", 'text,_id\none,a\n"x" y,b\ntwo,c\n\n , \nthree,d\n', ["one", "two", "three"], [(3, "not CSV")]),
        ("c.csv", b"text\none\n\xff\ntwo\n", ["one", "two"], [(3, "not UTF-8")]),
        ("c.csv", b'_id,text\n1,"caf\xe9 3""\nLondon, a city\n"\n2,two\n3,"t\n"\n', ["two", "t"], [(2, "not UTF-8")]),
        ("c.csv", b'_id,text\n1,"one\ncaf\xe9 3""\n"\n2,caf\xe9 3" long\n3,two\n', ["two"],
         [(3, "not UTF-8"), (5, "not UTF-8")]),
        ("c.csv", b'_id,text\n1,"' + (b"x" * 900_000 + b'"",\n') * 3 + b'"\n2,two\n', ["two"], [(2, "too long")]),
        ("c.csv", b'_id,text\n1,one\n2,"caf\xe9\n', ["one"], [(3, "not UTF-8")]),
        ("c.csv", b"text\none\n" + b"x" * 2_000_000 + b"\ntwo\n", ["one", "two"], [(3, "too long")]),
        ("c.tsv", "text\t_id\none\ta\nx\ntwo\tc\n", ["one", "two"], [(3, "other number of cells")]),
        ("c.tsv", b"a\tone\n\xff\nb\ttwo\ttabs\n", ["one", "two\ttabs"], [(2, "not UTF-8")]),
        ("c.json", '[{"text": "one"}, 7, {"text": "two"},]', ["one", "two"], [(2, "no object"), (4, "not JSON")]),
        ("c.json", '[{"text": "' + "x" * 2_000_000 + '"}, {"text": "two"}]', ["two"], [(1, "too long")]),
        ("c.json", "[]", [], []),
        ("c.json", "\ufeff \n[\n]\n ", [], []),
        ("c.json", '{"text": "one"}\n{"text": "two"}', ["one", "two"], []),
        ("c.csv", "", [], []),
        ("c.csv", "text\n", [], []),
        ("c.tsv", "", [], []),
        ("c.csv", '\ufeff"text";"a,b"\r\n"one; ""two""";2\r\n', ['one; "two"'], []),
    ],
)  # fmt: skip
def test_bad_records_are_skipped_and_the_others_kept(tmp_path, name, content, texts, bad):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert skipped(corpus(tmp_path / name, "skip", text_fields=["text"])) == (texts, bad)


def test_an_array_whose_brackets_do_not_match_is_an_error_under_both_policies(tmp_path):
    """Nothing says where the next element begins."""
    (tmp_path / "c.json").write_text('[{"text": "one"}, {"text": [}, {"text": "x"}]')
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=r"c\.json:2: the JSON array does not end: .* or a bracket or quote"):
            skipped(corpus(tmp_path / "c.json", policy))


def test_the_size_of_compressed_files_is_an_estimate_of_their_text(tmp_path):
    records = records_of("one", "two")
    for suffix in (".jsonl", ".jsonl.gz", ".parquet"):
        file = write_records(tmp_path / f"c{suffix}", records)
        assert corpus(file).size_bytes() == file.stat().st_size * (1 if suffix == ".jsonl" else 4)
    text = TextCorpus("mine", str(tmp_path / "c.jsonl.gz"), "*", "lines", True, "error", 1, None)
    assert text.size_bytes() == (tmp_path / "c.jsonl.gz").stat().st_size * 4


def test_quotes_of_tsv_files(tmp_path):
    """DPR quotes cells and doubles the quotes within; MS MARCO writes text as it is."""
    with_header = 'id\ttext\ttitle\n1\t"Aaron ( or; ""Ahron"") is"\tAaron\n2\t"To be" or not\tB\n3\t"a\tb"\tC\n'
    (tmp_path / "psgs.tsv").write_text(with_header)
    found = list(corpus(tmp_path / "psgs.tsv", id_field="id", text_fields=["text"]).documents())
    assert [(d.id, d.title, d.text) for d in found] == [
        ("1", "Aaron", 'Aaron ( or; "Ahron") is'),
        ("2", "B", '"To be" or not'),
        ("3", "C", "a\tb"),
    ]
    (tmp_path / "collection.tsv").write_text('0\t"To be"\n1\t"or not\n')
    assert [(d.id, d.text) for d in corpus(tmp_path / "collection.tsv").documents()] == [
        ("0", '"To be"'),
        ("1", '"or not'),
    ]


def test_a_quoted_header_of_tsv_is_a_header(tmp_path):
    """R's write.table quotes the names. Cells may be longer than the limit of the csv module."""
    long = "word " * 30_000
    (tmp_path / "r.tsv").write_text(f'"id"\t"text"\n"1"\t"He said ""hi"" to me"\n"2"\t"{long}""end"""\n')
    before = csv.field_size_limit(131_072)
    try:
        found = list(corpus(tmp_path / "r.tsv", id_field="id").documents())
    finally:
        csv.field_size_limit(before)
    assert [(d.id, d.text) for d in found] == [("1", 'He said "hi" to me'), ("2", f'{long}"end"')]


def test_nested_fields_and_lists(tmp_path):
    records = [
        {"key": {"id": 7}, "metadata": {"body": "one", "title": "T"}, "parts": ["two ", "", "three"], "a.b": "four"},
        {"key": {"id": 8}, "metadata": {"body": None, "title": None}, "parts": [], "a.b": "five"},
    ]
    fields = ["metadata.body", "parts", "a.b"]
    for name in ("c.jsonl", "c.json", "c.parquet"):
        found = corpus(write_records(tmp_path / name, records), id_field="key.id", title_field="metadata.title",
                       text_fields=fields)  # fmt: skip
        assert list(found.documents()) == [
            Document("7", "T", "one\ntwo\nthree\nfour"),
            Document("8", "", "five"),
        ]
    with pytest.raises(DataError, match=r"c\.jsonl:1: none of .*only \['a\.b', 'key\.id', 'metadata\.body'"):
        list(corpus(tmp_path / "c.jsonl").documents())


def test_parquet_reads_only_the_columns_it_needs(tmp_path, monkeypatch):
    records = [{"docid": n, "text": f"t{n}", "title": None, "vector": [0.5] * 1000} for n in range(50)]
    file = write_records(tmp_path / "c.parquet", records)
    seen = []
    original = parquet_module._rows
    monkeypatch.setattr(parquet_module, "BATCH_BYTES", 1)
    monkeypatch.setattr(
        parquet_module, "_rows", lambda source, batch, n: seen.append(batch) or original(source, batch, n)
    )
    found = list(corpus(file.rename(tmp_path / "without_suffix"), id_field="docid").documents())
    assert [(d.id, d.text, d.line) for d in found[:2]] == [("0", "t0", 1), ("1", "t1", 2)]
    assert {frozenset(batch.schema.names) for batch in seen} == {frozenset({"docid", "text", "title"})}
    assert len(seen) == 50


def test_parquet_rows_that_are_bad(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    broken = pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "c.parquet")
    assert skipped(corpus(tmp_path / "c.parquet", "skip")) == (["one", "two"], [(2, "not UTF-8")])
    write_records(tmp_path / "d.parquet", [{"text": "one"}, {"text": "x" * 1_000_001}])
    assert skipped(corpus(tmp_path / "d.parquet", "skip")) == (["one"], [(2, "too long")])
    write_records(tmp_path / "e.parquet", [{"body": "one"}])
    with pytest.raises(DataError, match=r"e\.parquet: none of the columns .* only \['body'\]"):
        list(corpus(tmp_path / "e.parquet").documents())


@pytest.mark.parametrize(
    ("suffix", "modules", "message"),
    [
        (".parquet", ["pyarrow", "pyarrow.parquet"], r"c\.parquet: .*: pip install 'dream-retrieval\[parquet\]'"),
        (
            ".jsonl.zst",
            ["compression.zstd", "backports.zstd"],
            r"c\.jsonl\.zst: .*: pip install 'dream-retrieval\[zstd\]'",
        ),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_command(tmp_path, monkeypatch, suffix, modules, message):
    file = write_records(tmp_path / f"c{suffix}", records_of("one", "two"))
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=message) as stopped:
            list(corpus(file, policy).documents())
        assert "\n" not in str(stopped.value)
    plain = write_records(tmp_path / "c.jsonl.gz", records_of("one", "two"))
    assert len(list(corpus(plain).documents())) == 2


@pytest.mark.parametrize("suffix", [".json", ".csv", ".tsv", ".jsonl.xz", ".jsonl.zst", ".parquet"])
def test_memory_is_bounded(tmp_path, suffix):
    """40 MB of documents are read with less than 12 MB of Python objects."""
    records = [{"_id": f"d{n}", "text": f"{n} " + "long words " * 180} for n in range(20_000)]
    found = corpus(write_records(tmp_path / f"c{suffix}", records), text_fields=["text"])
    next(found.documents())  # import what is needed
    tracemalloc.start()
    try:
        count = sum(1 for _ in found.documents())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == len(records)
    assert peak < 12_000_000


def test_a_long_element_of_an_array_is_not_held(tmp_path):
    (tmp_path / "c.json").write_text('[{"text": "' + "x" * 30_000_000 + '"}, {"text": "two"}]')
    tracemalloc.start()
    try:
        assert skipped(corpus(tmp_path / "c.json", "skip")) == (["two"], [(1, "too long")])
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\,[]{}')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@arbitrary
@given(st.lists(json_values, max_size=6), st.integers(1, 9), st.sampled_from([None, 2]), st.booleans())
def test_any_array_is_split_into_its_elements(values, size, indent, ascii_only):
    """The sizes of the blocks that are read do not matter."""
    content = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    blocks = (content[start : start + size] for start in range(0, len(content), size))
    elements = list(_ArraySplitter("c.json", 10**6).split(blocks))
    assert [json.loads(element) for element in elements] == values


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_small_blocks_give_the_same(tmp_path, monkeypatch, block):
    monkeypatch.setattr(source_file, "BLOCK_BYTES", block)
    for suffix in (".json", ".csv", ".tsv", ".jsonl.gz", ".json.bz2"):
        file = write_records(tmp_path / f"c{suffix}", records_of("one", 'two, "three"'))
        assert [d.text for d in corpus(file, text_fields=["text"]).documents()] == ["one", 'two, "three"']


LINES = [
    ("one\n\ntwo\r\n  three \n", [("c.txt:1", "one"), ("c.txt:3", "two"), ("c.txt:4", "three")], []),
    (b"one\n\xff\ntwo\n", [("c.txt:1", "one"), ("c.txt:3", "two")], [(2, "not UTF-8")]),
    ("one\n" + "x" * 2_000_000 + "\ntwo", [("c.txt:1", "one"), ("c.txt:3", "two")], [(2, "too long")]),
    (" \n\n", [], []),
    (b"PK\x03\x04" + bytes(9), [], [(1, "not text")]),
]


@pytest.mark.parametrize(("content", "documents", "bad"), LINES)
@pytest.mark.parametrize("packed", ["", ".xz"])
def test_one_document_a_line_of_text(tmp_path, content, documents, bad, packed):
    (tmp_path / "c.txt").write_bytes(compress(content.encode() if isinstance(content, str) else content, packed))
    found = TextCorpus("mine", str(tmp_path / "c.txt"), "*", "lines", True, "skip", 1, None)
    refused: list[tuple[int, str]] = []
    read = [(d.id, d.text) for d in found.documents(lambda b: refused.append((b.line, b.reason)))]
    assert (read, refused) == (documents, bad)


@pytest.mark.parametrize("split_by", ["blank_lines", "lines", "file"])
def test_a_file_of_a_folder_that_is_not_text_is_a_bad_document(tmp_path, split_by):
    (tmp_path / "a.txt").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "b.txt").write_bytes(b"PAR1\0\0\0\0PAR1")
    (tmp_path / "c.txt").write_text("one")
    policy = BadDocumentPolicy("skip")
    found = TextCorpus("mine", str(tmp_path), "*", split_by, True, "skip", 1, None)
    assert [d.text for d in found.documents(policy.handle)] == ["one"]
    assert policy.counts == {"not text": 2}
    with pytest.raises(DataError, match=r"a\.txt:1: this is a PDF file, .*pdftotext"):
        list(TextCorpus("mine", str(tmp_path), "*", split_by, True, "error", 1, None).documents())


@pytest.mark.parametrize("name", ["id", "docid", "doc_id", "pid"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".json", ".parquet"])
def test_labels_need_the_field_of_the_ids(tmp_path, name, suffix):
    records = [{name: f"d{n}", "text": f"text {n}"} for n in range(2)]
    file = write_records(tmp_path / f"c{suffix}", records)
    (tmp_path / "q.tsv").write_text("q\twords\n")
    (tmp_path / "dev.tsv").write_text("q\td1\t1\n")
    labels = {"queries": str(tmp_path / "q.tsv"), "qrels": {"dev": str(tmp_path / "dev.tsv")}}
    for policy in ("error", "skip"):
        with pytest.raises(ConfigError, match=rf"^corpus\.id_field=_id: .*'{name}' .*corpus\.id_field={name}$"):
            list(corpus(file, policy, **labels).documents())
    assert [d.id for d in corpus(file, id_field=name, **labels).documents()] == ["d0", "d1"]


def test_documents_without_ids_are_numbered_with_one_warning(tmp_path, capsys):
    file = write_records(tmp_path / "c.jsonl", [{"id": f"d{n}", "text": f"text {n}"} for n in range(3)])
    found = corpus(file)
    assert [d.id for d in found.documents()] == ["1", "2", "3"]
    list(found.documents())
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "c.jsonl:1 has no field '_id'" in warnings[0]
    assert "set corpus.id_field=id" in warnings[0]
