"""Unusual files by hand, and arbitrary ones: read or refused. Run: pytest tests/corpora/test_bad_input.py

DREAM_EXAMPLES=10000 makes 10,000 files in each test of arbitrary files.
"""

import gzip
import io
import json
import os
import re
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dream.corpora import bad_documents
from dream.corpora.bad_documents import BadDocumentPolicy, by_reason
from dream.corpora.compression import other_kind
from dream.corpora.jsonl import JsonlCorpus
from dream.corpora.text import TextCorpus
from dream.utils.errors import ConfigError, DataError

EXAMPLES = int(os.environ.get("DREAM_EXAMPLES", "150"))
arbitrary = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
LIMIT_MB = 0.001
A, B = b'{"_id": "a", "text": "one"}', b'{"_id": "b", "text": "two"}'
LONG = b'{"_id": "x", "text": "' + b"long " * 400 + b'"}'


def jsonl(file: Path, policy: str, **changes) -> JsonlCorpus:
    options = {"name": "mine", "path": str(file), "id_field": "_id", "title_field": "title", "text_fields": ["text"],
               "deduplicate": True, "queries": None, "qrels": None, "max_document_mb": LIMIT_MB,
               "language": None}  # fmt: skip
    return JsonlCorpus(**(options | changes), on_bad_document=policy)


def text(file: Path, policy: str, split_by: str = "blank_lines") -> TextCorpus:
    return TextCorpus("mine", str(file), "*", split_by, True, policy, LIMIT_MB, None)


def skipped(corpus) -> tuple[list[str], list[tuple[int, str]]]:
    """(texts of the good documents, (line, reason) of the bad ones)"""
    listing = io.StringIO()
    texts = [document.text for document in corpus.documents(BadDocumentPolicy("skip", listing).handle)]
    return texts, [(entry["line"], entry["reason"]) for entry in map(json.loads, listing.getvalue().splitlines())]


def between(bad: bytes, end: bytes = b"\n") -> bytes:
    """A bad line 2 between good neighbours."""
    return A + end + bad + end + B + end


BETWEEN = [  # name, bytes of line 2, reason
    ("a byte that UTF-8 never has", b'{"text": "\xff"}', "not UTF-8"),
    ("a character cut short", b'{"text": "caf\xc3"}', "not UTF-8"),
    ("Latin-1", '{"text": "für"}'.encode("latin-1"), "not UTF-8"),
    ("an overlong slash", b'{"text": "\xc0\xaf"}', "not UTF-8"),
    ("a surrogate in UTF-8", b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
    ("above U+10FFFF", b'{"text": "\xf4\x90\x80\x80"}', "not UTF-8"),
    ("UTF-16", '{"text": "a"}'.encode("utf-16-le"), "not JSON"),
    ("words", b"one two three", "not JSON"),
    ("half an object", b'{"text": "one', "not JSON"),
    ("two objects in a line", b'{"text": "one"} {"text": "two"}', "not JSON"),
    ("a comma at the end", b'{"text": "one",}', "not JSON"),
    ("single quotes", b"{'text': 'one'}", "not JSON"),
    ("a comment", b"// a comment", "not JSON"),
    ("an unknown escape", b'{"text": "\\x41"}', "not JSON"),
    ("a tab inside a string", b'{"text": "a\tb"}', "not JSON"),
    ("a NUL byte inside a string", b'{"text": "a\0b"}', "not JSON"),
    ("a line of NUL bytes", b"\0" * 30, "not JSON"),
    ("NaN", b'{"text": "one", "score": NaN}', "not JSON"),
    ("minus infinity", b'{"text": "one", "score": -Infinity}', "not JSON"),
    ("a number of 5,000 digits", b'{"text": ' + b"9" * 900 + b"}", "field not text"),
    ("deep nesting", b"[" * 900, "not JSON"),
    ("a list", b'["one"]', "no object"),
    ("a string", b'"one"', "no object"),
    ("null", b"null", "no object"),
    ("an empty object", b"{}", "no text field"),
    ("another field", b'{"texts": "one"}', "no text field"),
    ("a list with a number", b'{"text": ["one", 2]}', "field not text"),
    ("a list of lists", b'{"text": [["one"]]}', "field not text"),
    ("an object as text", b'{"text": {"body": "one"}}', "field not text"),
    ("a number as text", b'{"text": 3.5}', "field not text"),
    ("no number of texts", b'{"text": 0}', "field not text"),
    ("true as text", b'{"text": true}', "field not text"),
    ("an object as id", b'{"_id": {"$oid": "1"}, "text": "one"}', "field not text"),
    ("a list as title", b'{"title": ["T"], "text": "one"}', "field not text"),
    ("true as id", b'{"_id": true, "text": "one"}', "field not text"),
    ("a long line", LONG, "too long"),
    ("a long line that is no JSON", b"x" * 300_000, "too long"),
    ("a field name of many characters", b'{"' + b"k" * 900 + b'": "one"}', "no text field"),
]  # fmt: skip

READ = [  # name, bytes of the file, texts
    ("nothing", b"", []),
    ("blank lines only", b"\n \n\t\n\r\n", []),
    ("no end of the last line", A + b"\n" + B, ["one", "two"]),
    ("CRLF", between(b'{"text": "x"}', b"\r\n"), ["one", "x", "two"]),
    ("lone CR", between(b'{"text": "x"}', b"\r"), ["one", "x", "two"]),
    ("all line ends", A + b"\r" + B + b"\r\n" + A + b"\n\r" + B, ["one", "two", "one", "two"]),
    ("a byte order mark", b"\xef\xbb\xbf" + A, ["one"]),
    ("byte order marks of joined files", b"\xef\xbb\xbf" + A + b"\n\xef\xbb\xbf" + B, ["one", "two"]),
    ("U+2028 and U+0085", '{"text": "a\u2028b\x85c"}'.encode(), ["a\u2028b\x85c"]),
    ("right to left", '{"text": "שלום \u202eعالم\u202c"}'.encode(), ["שלום \u202eعالم\u202c"]),
    ("emoji of several characters", '{"text": "👩‍👩‍👧 🇩🇪"}'.encode(), ["👩‍👩‍👧 🇩🇪"]),
    ("combining characters", '{"text": "e\u0301\u0323"}'.encode(), ["e\u0301\u0323"]),
    ("lone surrogates, escaped", b'{"text": "a \\ud800 b"}', ["a ? b"]),
    ("a pair of surrogates, escaped", b'{"text": "\\ud83d\\ude00"}', ["😀"]),
    ("a NUL, escaped", b'{"text": "a\\u0000b"}', ["a\0b"]),
    ("empty, null and blank texts", b'{"text": ""}\n{"text": null}\n{"text": " \\n "}', ["", "", ""]),
    ("lists of texts", b'{"text": ["one ", "", "two"]}\n{"text": []}', ["one\ntwo", ""]),
    ("a field twice", b'{"text": "one", "text": "two"}', ["two"]),
    ("a number as id and title", b'{"_id": 7, "title": 2.5, "text": "one"}', ["one"]),
    ("a line as long as may be", b'{"text": "' + b"x" * 988 + b'"}', ["x" * 988]),
    ("gzip members, one after another", gzip.compress(A + b"\n", mtime=0) + gzip.compress(B, mtime=0), ["one", "two"]),
]  # fmt: skip


def write(folder: Path, content: bytes) -> Path:
    file = folder / ("c.jsonl.gz" if content.startswith(b"\x1f\x8b") else "c.jsonl")
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(("bad", "reason"), [pytest.param(*case, id=name) for name, *case in BETWEEN])
def test_a_bad_line_is_named_and_its_neighbours_are_kept(tmp_path, bad, reason):
    file = write(tmp_path, between(bad))
    assert skipped(jsonl(file, "skip")) == (["one", "two"], [(2, reason)])
    with pytest.raises(DataError, match=r"c\.jsonl:2: .*corpus\.on_bad_document=skip") as stopped:
        list(jsonl(file, "error").documents())
    assert "\n" not in str(stopped.value)
    assert len(str(stopped.value)) < 800


@pytest.mark.parametrize(("content", "texts"), [pytest.param(*case, id=name) for name, *case in READ])
def test_odd_files_that_are_right_are_read(tmp_path, content, texts):
    assert [document.text for document in jsonl(write(tmp_path, content), "error").documents()] == texts


def test_numbers_of_thousands_of_digits_and_thousandfold_nesting(tmp_path):
    content = between(b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n" + b'{"text": ' + b"[" * 100_000 + b"]" * 100_000)
    corpus = jsonl(write(tmp_path, content), "skip", max_document_mb=1)
    assert skipped(corpus) == (["one", "two"], [(2, "not JSON"), (3, "not JSON")])


TEXTS = [  # name, bytes of the file, texts, (line, reason) of bad documents
    ("nothing", b"", [], []),
    ("white space of all kinds", " \n\u00a0\u3000\n\t\r\n".encode(), [], []),
    ("paragraphs", b"one\nmore\n\n\ntwo", ["one\nmore", "two"], []),
    ("CRLF", b"one\r\nmore\r\n\r\ntwo\r\n", ["one\nmore", "two"], []),
    ("lone CR", b"one\rmore\r\rtwo\r", ["one\nmore", "two"], []),
    ("byte order marks", b"\xef\xbb\xbfone\n\n\xef\xbb\xbftwo", ["one", "two"], []),
    ("U+2028 is no line end", "one\u2028\u2028two".encode(), ["one\u2028\u2028two"], []),
    ("right to left, emoji, combining", "שלום\n\n👩‍👧\n\ne\u0301".encode(), ["שלום", "👩‍👧", "e\u0301"], []),
    ("a byte that UTF-8 never has", b"one\n\nbad\n\xff\nbad\n\ntwo", ["one", "two"], [(4, "not UTF-8")]),
    ("Latin-1 in the first line", b"f\xfcr\n\none", ["one"], [(1, "not UTF-8")]),
    ("a character cut short at the end", b"one\n\ncaf\xc3", ["one"], [(3, "not UTF-8")]),
    ("two bad lines of a block", b"\xff\n\xfe\n\none", ["one"], [(1, "not UTF-8")]),
    ("two bad blocks", b"\xff\n\n\xfe\n\none", ["one"], [(1, "not UTF-8"), (3, "not UTF-8")]),
    ("a NUL byte", b"one\n\na\0b\n\ntwo", ["one", "two"], [(3, "NUL characters")]),
    ("UTF-16 without a mark", "one\n".encode("utf-16-le"), [], [(1, "NUL characters")]),
    ("UTF-16 with a mark", "one".encode("utf-16"), [], [(1, "not UTF-8")]),
    ("a long line", b"one\n\n" + b"x" * 300_000 + b"\n\ntwo", ["one", "two"], [(3, "too long")]),
    ("a long block of short lines", b"one\n\n" + b"xxx\n" * 300 + b"\ntwo", ["one", "two"], [(3, "too long")]),
    ("a block as long as may be", b"x" * 499 + b"\n" + b"y" * 500, ["x" * 499 + "\n" + "y" * 500], []),
    ("a block one byte longer", b"x" * 500 + b"\n" + b"y" * 500, [], [(1, "too long")]),
    ("a long block in characters of three bytes", "€\n".encode() * 300, [], [(1, "too long")]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "texts", "bad"), [pytest.param(*case, id=name) for name, *case in TEXTS])
def test_plain_text(tmp_path, content, texts, bad):
    file = tmp_path / "c.txt"
    file.write_bytes(content)
    assert skipped(text(file, "skip")) == (texts, bad)
    whole, refused = skipped(text(file, "skip", "file"))
    assert len(whole) + len(refused) == 1
    for split_by in ("blank_lines", "file") if bad else ():
        with pytest.raises(DataError, match=r"c\.txt:\d+: .*corpus\.on_bad_document=skip"):
            list(text(file, "error", split_by).documents())


def test_a_bad_file_of_a_folder_is_left_out_whole(tmp_path):
    for name, content in (("a", b"one\n\ntwo"), ("b", b"bad\n\n\xff\n\nbad"), ("c", b"three")):
        (tmp_path / name).write_bytes(content)
    assert skipped(text(tmp_path, "skip", "file")) == (["one\n\ntwo", "three"], [(3, "not UTF-8")])
    assert skipped(text(tmp_path, "skip")) == (["one", "two", "bad", "bad", "three"], [(3, "not UTF-8")])


def test_a_file_whose_name_is_not_utf8(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_bytes(b"one")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    corpus = text(tmp_path, "error")
    assert [document.id for document in corpus.documents()] == ["\\xff.txt:1"]
    json.dumps(corpus.fingerprint()).encode()


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("damage", ["cut short", "zeros in the middle"])
def test_a_damaged_gzip_file_is_an_error_under_both_policies(tmp_path, policy, share, damage):
    lines = [json.dumps({"_id": str(n), "text": os.urandom(20).hex()}).encode() for n in range(5000)]
    packed = gzip.compress(b"\n".join(lines), mtime=0)
    middle = int(share * len(packed))
    file = tmp_path / "c.jsonl.gz"
    file.write_bytes(packed[:middle] if damage == "cut short" else packed[:middle] + bytes(99) + packed[middle + 99 :])
    read = []
    with pytest.raises(DataError, match=r"c\.jsonl\.gz:\d+: ") as stopped:
        read.extend(document.text for document in jsonl(file, policy).documents())
    if damage == "cut short":
        assert "damaged gzip" in str(stopped.value)
        assert f"{len(read):,} whole lines are before the damage" in str(stopped.value)
        assert share - 0.05 < len(read) / 5000 < share + 0.05  # all that could be unpacked is read


def test_a_gzip_file_without_its_suffix_is_read(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(A, mtime=0))
    assert [document.text for document in jsonl(tmp_path / "c.jsonl", "error").documents()] == ["one"]


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("change", ["longer", "shorter", "as long", "later"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_changes_after_its_fingerprint_was_taken(tmp_path, policy, change, suffix):
    pack = gzip.compress if suffix else bytes
    lines = [json.dumps({"text": os.urandom(50).hex()}).encode() for _ in range(6000)]  # several blocks, packed too
    file = tmp_path / f"c.jsonl{suffix}"
    file.write_bytes(pack(b"\n".join(lines)))
    corpus = jsonl(file, policy)
    corpus.fingerprint()
    assert sum(1 for _ in corpus.documents()) == len(lines)
    documents = corpus.documents()
    if change == "later":  # while it is read
        next(documents)
    others = {"longer": [*lines, A], "shorter": lines[:-1]}.get(change, [*lines[:-1], lines[-2]])
    file.write_bytes(pack(b"\n".join(others)))
    with pytest.raises(DataError, match=r"c\.jsonl(\.gz)?.*(changed|damaged)"):
        list(documents)


def test_pipes_devices_and_missing_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="a pipe or a device"):
        jsonl(tmp_path / "pipe", "error")
    with pytest.raises(ConfigError, match="a pipe or a device"):
        text(Path("/dev/zero"), "error")
    (tmp_path / "c.jsonl").write_bytes(A)
    corpus = jsonl(tmp_path / "c.jsonl", "skip")
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(DataError, match=r"c\.jsonl.*cannot be read \(No such file"):
        corpus.fingerprint()
    with pytest.raises(DataError, match=r"c\.jsonl.*cannot be read \(No such file"):
        list(corpus.documents())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "ignore"}, "corpus.on_bad_document=ignore: choose error or skip"),
        ({"max_document_mb": 0}, "corpus.max_document_mb=0: more than 0 MB"),
    ],
)
def test_bad_settings_name_their_key(tmp_path, changes, message):
    (tmp_path / "c.jsonl").write_bytes(A)
    with pytest.raises(ConfigError, match=message):
        jsonl(tmp_path / "c.jsonl", **({"policy": "skip"} | changes))


def test_the_fingerprint_depends_on_policy_and_limit(tmp_path):
    for make, name in ((jsonl, "c.jsonl"), (text, "c.txt")):
        (tmp_path / name).write_bytes(A)
        assert make(tmp_path / name, "skip").fingerprint() != make(tmp_path / name, "error").fingerprint()
    longer = jsonl(tmp_path / "c.jsonl", "skip", max_document_mb=2)
    assert longer.fingerprint() != jsonl(tmp_path / "c.jsonl", "skip").fingerprint()


def test_the_list_of_bad_documents_is_bounded_and_the_counts_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_documents, "MOST_LISTED", 3)
    (tmp_path / "c.jsonl").write_bytes(b"x\n" * 5 + b"[]\n" * 1200)
    listing = io.StringIO()
    policy = BadDocumentPolicy("skip", listing)
    assert list(jsonl(tmp_path / "c.jsonl", "skip").documents(policy.handle)) == []
    assert len(listing.getvalue().splitlines()) == 3
    assert by_reason(policy.counts) == "1,200 no object, 5 not JSON"
    assert str(policy.first).startswith(f"{tmp_path}/c.jsonl:1: not valid JSON")


@arbitrary
@given(st.binary(max_size=300) | st.lists(st.binary(max_size=40)).map(b"\n".join) | st.text().map(str.encode))
def test_arbitrary_bytes_as_jsonl(tmp_path, content):
    file = tmp_path / "c.jsonl"
    file.write_bytes(content)
    lines = re.split(rb"\r\n|\r|\n", content)
    if content.startswith(b"\x1f\x8b") or other_kind(content):  # an error of the whole file
        return
    texts, bad = skipped(jsonl(file, "skip"))
    assert len(texts) + len(bad) == sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in lines)
    stop_at_first(jsonl(file, "error"), bad)


@arbitrary
@given(st.binary(max_size=300) | st.lists(st.binary(max_size=20)).map(b"\n".join) | st.text().map(str.encode))
def test_arbitrary_bytes_as_text(tmp_path, content):
    file = tmp_path / "c.txt"
    file.write_bytes(content)
    if content.startswith((b"\x1f\x8b", b"%PDF-")):  # gzip; a PDF is refused as such
        return
    texts, bad = skipped(text(file, "skip"))
    lines = [line.removeprefix(b"\xef\xbb\xbf").decode(errors="replace") for line in re.split(rb"\r\n|\r|\n", content)]
    blocks = [list(block) for has_text, block in groupby(lines, key=lambda line: bool(line.strip())) if has_text]
    good = ["\n".join(block).strip() for block in blocks if not re.search("[\ufffd\0]", "\n".join(block))]
    if b"\xef\xbf\xbd" not in content:  # the file itself has no replacement character
        assert texts == good
        assert len(bad) == len(blocks) - len(good)
    stop_at_first(text(file, "error"), bad)
    whole, refused = skipped(text(file, "skip", "file"))
    assert len(whole) + len(refused) == 1
    assert bool(refused) == bool(bad)


@arbitrary
@given(st.binary(max_size=400), st.integers(0, 60), st.integers(0, 60))
def test_arbitrary_bytes_as_gzip(tmp_path, content, cut, change):
    """A changed gzip file is an error, or reads as what was packed."""
    file = tmp_path / "c.txt.gz"
    packed = bytearray(gzip.compress(content, mtime=0))
    packed[change % len(packed)] ^= 1 + cut
    file.write_bytes(packed[: len(packed) - cut % 7])
    try:
        texts, _ = skipped(text(file, "skip"))
    except DataError as error:
        assert re.search(r"c\.txt\.gz:\d+: damaged gzip", str(error))  # noqa: PT017
    else:
        file.write_bytes(gzip.compress(content, mtime=0))
        assert skipped(text(file, "skip"))[0] == texts


def stop_at_first(corpus, bad: list[tuple[int, str]]) -> None:
    """With `error`, the first bad line stops the reading; without a bad line, nothing does."""
    if not bad:
        list(corpus.documents())
        return
    with pytest.raises(DataError) as stopped:
        list(corpus.documents())
    assert re.search(rf"c\.(jsonl|txt):{bad[0][0]}: ", str(stopped.value))


good_lines = st.text(min_size=1, max_size=40).map(lambda words: (words.strip(), json.dumps({"text": words}).encode()))


@st.composite
def mutated_lines(draw) -> tuple[None, bytes]:
    """A good line of which one byte was lost, changed or inserted; it may still be good."""
    line = bytearray(draw(good_lines)[1])
    place = draw(st.integers(0, len(line) - 1))
    match draw(st.sampled_from(["lose", "change", "put in", "cut", "wrap"])):
        case "lose":
            del line[place]
        case "change":
            line[place] = draw(st.integers(0, 255))
        case "put in":
            line.insert(place, draw(st.integers(0, 255)))
        case "cut":
            del line[place:]
        case "wrap":
            line = bytearray(b"[%b]" % line)
    return None, bytes(line)


@arbitrary
@given(st.lists(good_lines | mutated_lines(), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_good_lines_among_bad_ones_come_through_in_order(tmp_path, lines, end):
    """The result is compared with that of Python's json, line by line."""
    file = tmp_path / "c.jsonl"
    content = end.join(line for _, line in lines)
    file.write_bytes(content)
    expected, refused = [], []
    for number, line in enumerate(re.split(rb"\r\n|\r|\n", content), start=1):
        line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            words = read_plainly(line)
            refused += [number] if words is None else []
            expected += [] if words is None else [words]
    texts, bad = skipped(jsonl(file, "skip"))
    assert texts == expected
    assert [number for number, _ in bad] == refused
    intact = iter(texts)
    assert all(words in intact for words, _ in lines if words is not None)  # in order, none missing
    stop_at_first(jsonl(file, "error"), bad)


def read_plainly(line: bytes) -> str | None:
    """The text of a line; None if it has none."""
    try:
        words = json.loads(line.decode())["text"]
        return ("" if words is None else words).strip().encode("utf-8", "replace").decode()
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
