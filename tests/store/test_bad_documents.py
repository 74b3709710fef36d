"""Bad documents while a store is built. Run: pytest tests/store/test_bad_documents.py"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dream.corpora.jsonl import JsonlCorpus
from dream.corpora.text import TextCorpus
from dream.store.build import open_or_build
from dream.store.store import Store
from dream.utils.errors import ConfigError, DataError

EXAMPLES = int(os.environ.get("DREAM_EXAMPLES", "60"))
LENGTHS = {"passage_tokens": 5, "context_tokens": 6, "min_context_tokens": 3, "target_tokens": 3}
WORDS = "dana fogu lemi bora tiko nafe rusa gelo mipa sudo"


def jsonl(folder: Path, lines: list, policy: str = "skip", deduplicate: bool = True) -> JsonlCorpus:
    """A corpus of these lines: bytes as they are, anything else as JSON."""
    file = folder / "c.jsonl"
    file.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return JsonlCorpus("c", str(file), "_id", "title", ["text"], deduplicate, None, None, policy, 1, None)


def documents(count: int) -> list[dict]:
    return [{"_id": f"d{n}", "text": f"{WORDS} {n} {WORDS}"} for n in range(count)]


def build(folder: Path, corpus, tokenizer) -> Store:
    return open_or_build(folder / "stores", corpus, tokenizer, tokenizer, **LENGTHS)


def listed(store: Store) -> list[tuple[int, str]]:
    entries = map(json.loads, (store.path / "refused.jsonl").read_text().splitlines())
    return [(entry["line"], entry["reason"]) for entry in entries]


def test_refused_documents_are_counted_listed_and_logged(tmp_path, tokenizer, capsys):
    a, b, c = documents(3)
    lines = [a, b"{oops", b, a, {"_id": "short", "text": "bo"}, {"_id": "none", "text": " "}, b"\xff", c, {"_id": "x"}]
    store = build(tmp_path, jsonl(tmp_path, lines), tokenizer)
    counts = store.manifest["counts"]
    assert listed(store) == [(2, "not JSON"), (7, "not UTF-8"), (9, "no text field")]
    assert store.manifest["refused"] == {"not JSON": 1, "not UTF-8": 1, "no text field": 1}
    assert [store.document_names[row] for row in range(4)] == ["d0", "d1", "short", "d2"]
    expected = {"documents_read": 9, "refused": 3, "empty": 1, "duplicates": 1, "documents": 4}
    assert counts == counts | expected | {"documents_without_window": 1}
    message = f"1 not JSON, 1 not UTF-8, 1 no text field; listed with file and line in {store.path}/refused.jsonl"
    assert message in capsys.readouterr().out
    build(tmp_path, jsonl(tmp_path, lines), tokenizer)
    assert message in capsys.readouterr().out  # also for a store that existed already


def test_a_store_made_with_skip_is_not_that_of_error(tmp_path, tokenizer):
    skip = build(tmp_path, jsonl(tmp_path, documents(3)), tokenizer)
    error = build(tmp_path, jsonl(tmp_path, documents(3), "error"), tokenizer)
    assert skip.hash != error.hash
    assert error.manifest["refused"] == {}
    assert listed(error) == []


@pytest.mark.parametrize("deduplicate", [True, False])
def test_an_id_of_two_texts_is_refused_with_both_lines(tmp_path, tokenizer, deduplicate):
    a, b, c = documents(3)
    lines = [a, b, c | {"_id": "d0"}, c, b | {"_id": "d2"}]  # the last one has a known text and a known id
    store = build(tmp_path, jsonl(tmp_path, lines, "skip", deduplicate), tokenizer)
    assert listed(store) == [(3, "id used twice"), (5, "id used twice")]
    assert store.rows_of(["d0", "d1", "d2"]) == {"d0": 0, "d1": 1, "d2": 2}
    with pytest.raises(DataError, match=r"c\.jsonl:3: .*c\.jsonl:1 already has the id 'd0'; give each"):
        build(tmp_path, jsonl(tmp_path, lines, "error", deduplicate), tokenizer)


def test_the_same_document_twice_is_a_duplicate_and_an_alias_keeps_its_text(tmp_path, tokenizer):
    a, b, c = documents(3)
    lines = [a, b, a, a | {"_id": "alias"}, c | {"_id": "alias"}, c]
    store = build(tmp_path, jsonl(tmp_path, lines), tokenizer)
    assert listed(store) == [(5, "id used twice")]
    assert store.manifest["counts"]["duplicates"] == 2
    assert store.rows_of(["d0", "alias", "d2"]) == {"d0": 0, "alias": 0, "d2": 2}


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (
            [b"x", b"y"],
            DataError,
            r"is empty: 2 documents .* \(2 bad ones were left out, first .*c\.jsonl:1: not valid JSON",
        ),
        (documents(1) * 3000, DataError, r"only one document \(2,999 more are copies of it\)"),
        (
            [*documents(1), b"x"],
            DataError,
            r"only one document \(1 bad ones were left out, first .*c\.jsonl:2: .*\), so",
        ),
        ([{"text": "bo"}, {"text": "da"}], ConfigError, "data.target_tokens=3: no document of corpus c has 6 tokens"),
    ],
)
def test_unusable_corpora_leave_no_store(tmp_path, tokenizer, lines, error, message):
    with pytest.raises(error, match=message):
        build(tmp_path, jsonl(tmp_path, lines), tokenizer)
    assert list((tmp_path / "stores").iterdir()) == []


@pytest.mark.parametrize("policy", ["skip", "error"])
def test_a_file_that_changes_while_the_store_is_made_leaves_no_store(tmp_path, tokenizer, policy):
    corpus = jsonl(tmp_path, documents(5), policy)
    corpus.fingerprint()
    jsonl(tmp_path, documents(6))
    with pytest.raises(DataError, match=r"c\.jsonl: changed between"):
        build(tmp_path, corpus, tokenizer)
    assert list((tmp_path / "stores").iterdir()) == []


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.text(max_size=60) | st.binary(max_size=40), max_size=8), st.sampled_from(["jsonl", "text"]))
def test_every_character_of_a_kept_document_is_in_exactly_one_passage(tmp_path_factory, tokenizer, parts, kind):
    """Arbitrary texts and bytes between three good documents: the store has exactly the texts of the corpus."""
    folder = tmp_path_factory.mktemp("any")
    good = documents(3)
    if kind == "jsonl":
        lines = [part if isinstance(part, bytes) else {"text": part} for part in parts]
        corpus = jsonl(folder, [good[0], *lines, *good[1:]])
    else:
        blocks = [part if isinstance(part, bytes) else part.encode("utf-8", "replace") for part in parts]
        texts = [document["text"].encode() for document in good]
        (folder / "c.txt").write_bytes(b"\n\n".join([texts[0], *blocks, *texts[1:]]))
        corpus = TextCorpus("c", str(folder / "c.txt"), "*", "blank_lines", True, "skip", 1, None)
    store = build(folder, corpus, tokenizer)
    given_texts = [document.text for document in corpus.documents() if document.text.strip()]
    first_of_each = list({" ".join(words.split()): words for words in reversed(given_texts)}.values())[::-1]
    assert sorted(store.texts[row] for row in range(len(store.texts))) == sorted(first_of_each)
    for row in range(len(store.texts)):
        ranges = store.passages["characters"][store.passage_documents == row]
        assert ranges[0, 0] == 0
        assert ranges[-1, 1] == len(store.texts[row])
        assert (ranges[1:, 0] == ranges[:-1, 1]).all()
    starts, _, ends = store.windows["characters"].T
    same = np.diff(store.windows["document"]) == 0
    assert (starts[1:][same] >= ends[:-1][same]).all()
