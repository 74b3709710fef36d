"""Titles, sentences and headings as contexts, and their windows. Run: pytest tests/store/test_contexts.py"""

import json

import numpy as np
import pytest
from tests.word_store import word_store

from dream.corpora.base import Document
from dream.corpora.jsonl import JsonlCorpus
from dream.store.build import open_or_build
from dream.store.contexts import RANGES
from dream.store.store import ENCODER, SCORER, Store
from dream.utils.errors import ConfigError


def found(kind: str, text: str, title: str = "") -> list[str]:
    return [text[start:end] for start, end in RANGES[kind](Document("d", title, text))]


def test_a_title_is_the_beginning_of_the_text():
    assert found("title", "Wing flow\nIt is smooth.", "Wing flow") == ["Wing flow"]
    assert found("title", " Wing flow It is smooth.", "Wing flow ") == ["Wing flow"]
    assert found("title", "Wing flows are smooth.", "Wing flow") == []  # the title ends inside a word
    assert found("title", "It is smooth.", "Wing flow") == []
    assert found("title", "Wing flow", "Wing flow") == []  # nothing follows
    assert found("title", "It is smooth.", "") == []


def test_sentences():
    text = 'One is here. Two, e.g. this one, too! "Is it?" Yes.\n\nNo full stop\n\n 三つ目。四つ目'
    assert found("sentence", text) == [
        "One is here.", "Two, e.g. this one, too!", '"Is it?"', "Yes.", "No full stop", "三つ目。", "四つ目",
    ]  # fmt: skip


def test_headings():
    below = "This paragraph is long enough to stand below a heading."
    text = f"# One #\ntext\n\nTwo words\n=========\ntext\n\nThree\n\n{below}\n\nA sentence.\n{below}\n- item\n{below}"
    assert found("heading", text) == ["One", "Two words", "Three"]
    assert found("heading", f"Short\n{below}\nAlso short\n{below}") == ["Short"]  # the second one is inside a block
    assert found("heading", "Key: value\nother: value") == []


@pytest.fixture
def build(tmp_path, tokenizer):
    """build(documents, kind, …) → the store of (title, text) documents with the tiny byte-level tokenizer."""

    def make(documents: list[tuple[str, str]], kind: str, target: str = "continuation", **lengths) -> Store:
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps({"title": title, "text": text}) + "\n" for title, text in documents))
        corpus = JsonlCorpus("hand", str(path), "_id", "title", ["title", "text"], False, None, None, "error", 32, None)
        cuts = {"passage_tokens": 24, "context_tokens": 30, "min_context_tokens": 2, "target_tokens": 10} | lengths
        return open_or_build(tmp_path / "stores", corpus, tokenizer, tokenizer, **cuts, context=kind, target=target)

    return make


DOCUMENTS = [
    ("bade fogu", "Kipo lemi nabo rade. Sotu pabi dego kufi lame nori. " * 4),
    (
        "muti rapo seko",
        "Dalu fige hobi. Kupo lamo nebi pura sodi tage.\n\nBuda kepo\n\n" + "gifo lade muso nipa rebu " * 8,
    ),
    ("", "Tabo dulo fegi kamu lipo."),
]


def windows_of(store: Store) -> list[tuple[int, str, str]]:
    texts = [store.window_text(window) for window in range(len(store.windows))]
    return [(int(document), context.strip(), target.strip()) for document, (context, target) in
            zip(store.windows["document"], texts, strict=True)]  # fmt: skip


def test_windows_of_titles(build):
    windows = windows_of(build(DOCUMENTS, "title"))
    assert [(document, context) for document, context, _ in windows] == [(0, "bade fogu"), (1, "muti rapo seko")]
    assert all(DOCUMENTS[document][1].startswith(target) for document, _, target in windows)


def test_windows_of_sentences_and_headings(build):
    sentences = windows_of(build(DOCUMENTS, "sentence"))
    assert (1, "Kupo lamo nebi pura sodi tage.") in [window[:2] for window in sentences]
    assert (2, DOCUMENTS[2][1]) not in [window[:2] for window in sentences]  # nothing follows it
    [heading] = [window for window in windows_of(build(DOCUMENTS, "heading")) if window[1] == "Buda kepo"]
    assert heading[2].startswith("gifo lade")


def test_windows_of_beginnings(build):
    store = build(DOCUMENTS, "beginning", context_tokens=6)
    assert store.windows["document"].tolist() == [0, 1, 2]  # also of a document that is shorter than the target
    for document, context, target in windows_of(store):
        assert " ".join(store.texts[document].split()).startswith(" ".join(f"{context} {target}".split()[:-1]))
    counts = np.diff(store.windows["tokens"][:, SCORER])
    assert (counts[:, 0] <= 6).all()
    assert (counts[:, 1] <= 10).all()


def test_spans_have_the_same_store_as_before_and_other_contexts_have_their_own(build):
    span, title = build(DOCUMENTS, "span"), build(DOCUMENTS, "title")
    assert "context" not in span.manifest
    assert span.hash != title.hash
    asked = build(DOCUMENTS, "title", "context")
    assert (asked.path, asked.hash) == (title.path, title.hash)
    assert len({title.scoring_hash, asked.scoring_hash, build(DOCUMENTS, "title", "both").scoring_hash}) == 3


def test_what_is_scored(build):
    for target in ("continuation", "context", "both"):
        store = build(DOCUMENTS, "title", target)
        context, continuation = (ids.tolist() for ids in store.window_tokens(1, SCORER))
        given, scored = (ids.tolist() for ids in store.scored_tokens(1))
        assert (given, scored) == {"continuation": (context, continuation), "context": ([], context),
                                   "both": ([], context + continuation)}[target]  # fmt: skip
        assert store.scored_counts(np.array([1])).tolist() == [len(scored)]
        assert len(given) <= store.longest_window[0]
        assert len(scored) <= store.longest_window[1]
        assert store.scored_text(1)[1].strip().startswith("muti" if target != "continuation" else "Dalu")


def test_a_passage_is_read_without_the_title_that_is_asked_for(build, tokenizer):
    """The first passage of a document starts with its title. For search it keeps it."""
    store = build(DOCUMENTS, "title", "context")
    for document, title in enumerate(["bade fogu", "muti rapo seko"]):
        passage = int(np.searchsorted(store.passage_documents, document))
        assert store.passage_text(passage).startswith(title)
        for side in (ENCODER, SCORER):
            read = tokenizer.decode(store.read_tokens(passage, side))
            assert title.split()[0] not in read
            assert read.split()[0] == DOCUMENTS[document][1].split()[0].lower() or read.split()
        batch = store.passage_batch([passage], 100, training=True)
        assert batch.ids_BT[0].tolist() == store.read_tokens(passage, ENCODER).tolist()
        whole = store.passage_batch([passage], 100)
        assert whole.ids_BT[0].tolist() == store.passage_tokens(passage, ENCODER).tolist()
    assert build(DOCUMENTS, "title").readings is not store.readings
    other = build(DOCUMENTS, "title")  # asked for the continuation, the language model may read titles
    assert (other.readings == other.passages).all()


@pytest.mark.parametrize(
    ("documents", "kind", "message"),
    [
        ([("", "one two three four"), ("", "five six seven")], "title", "data.context=title: no document .* starts"),
        ([("", "one two three four"), ("", "five six seven")], "heading", "data.context=heading: .* has none"),
        ([("one", "two"), ("five", "six")], "title", "data.context=title: only 0 of 2 titles .* have 2 to 30 tokens"),
    ],
)
def test_a_corpus_without_such_contexts_is_refused(build, documents, kind, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        build(documents, kind)
    assert "\n" not in str(refusal.value)


def test_windows_of_words(tmp_path):
    """With one word as context: `span` cuts many windows, `beginning` one of each document."""
    texts = [" ".join("abcdefghijkl"), " ".join("mnopqrstuvwx")]
    assert len(word_store(tmp_path, texts, context=1, target=2).windows) == 8
    store = word_store(tmp_path, texts, context=1, target=2, kind="beginning")
    assert [store.window_text(window) for window in (0, 1)] == [("a ", "b c "), ("m ", "n o ")]
