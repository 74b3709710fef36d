"""Plain text as a corpus. Run: pytest tests/corpora/test_text.py"""

import gzip

import pytest

from dream.corpora.base import Document
from dream.corpora.text import TextCorpus
from dream.utils.errors import ConfigError, DataError


def text(path, split_by="blank_lines", pattern="*.txt", policy="error", megabytes=1.0):
    return TextCorpus("mine", str(path), pattern, split_by, True, policy, megabytes, None)


def test_blocks_between_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\r\n  one\r\ntwo \r\n \t\r\n\r\nthree")
    assert list(text(tmp_path / "a.txt").documents()) == [
        Document("a.txt:2", "a.txt", "one\ntwo"),
        Document("a.txt:6", "a.txt", "three"),
    ]


def test_files_of_a_folder_in_a_fixed_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "sub/a.txt", "a.txt", "skipped.md"):
        (tmp_path / name).write_text(f"text of {name}\n\nmore\n")
    documents = list(text(tmp_path, "file").documents())
    assert [d.id for d in documents] == ["a.txt", "b.txt", "sub/a.txt"]
    assert documents[2].text == "text of sub/a.txt\n\nmore"
    assert [d.id for d in text(tmp_path).documents()][:3] == ["a.txt:1", "a.txt:3", "b.txt:1"]


def test_gzip(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo", mtime=0))
    assert [d.text for d in text(tmp_path / "a.txt.gz").documents()] == ["one", "two"]


def test_empty_file(tmp_path):
    (tmp_path / "a.txt").touch()
    assert list(text(tmp_path).documents()) == []


def test_bad_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n\nf\xfcr\n")
    for split_by in ("blank_lines", "file"):
        with pytest.raises(DataError, match=r"a\.txt:3: not valid UTF-8"):
            list(text(tmp_path, split_by).documents())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere"}, "corpus.path=nowhere: no such file or folder"),
        ({"split_by": "words"}, "corpus.split_by=words: choose blank_lines, lines or file"),
        ({"pattern": "*.md"}, r"matches corpus.pattern=\*.md"),
        ({"pattern": ""}, "corpus.pattern="),
    ],
)
def test_bad_settings_name_their_key(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        text(**({"path": tmp_path} | settings))


def test_there_are_no_labels(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert text(tmp_path).splits() == []
    with pytest.raises(ConfigError, match="has no labels"):
        text(tmp_path).labels("dev")


def test_the_fingerprint_follows_content_and_split(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    first = text(tmp_path).fingerprint()
    assert first == text(tmp_path).fingerprint()
    assert first != text(tmp_path, "file").fingerprint()
    (tmp_path / "b.txt").write_text("two")
    assert first != text(tmp_path).fingerprint()
