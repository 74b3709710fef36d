"""Whole stores of small corpora. Run: pytest tests/store/test_build.py"""

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dream.corpora.base import Document
from dream.store import build as build_module
from dream.store.build import open_or_build, sample_texts
from dream.store.store import ENCODER, SCORER, Store
from dream.utils.errors import ConfigError, DataError

LENGTHS = {"passage_tokens": 20, "context_tokens": 24, "min_context_tokens": 10, "target_tokens": 12}


class ListCorpus:
    """A corpus of given documents."""

    name = "list"
    on_bad_document = "error"

    def __init__(self, texts: list[str], deduplicate: bool = True) -> None:
        self.texts, self.deduplicate = texts, deduplicate

    def fingerprint(self):
        return {"texts": self.texts}

    def size_bytes(self):
        return sum(map(len, self.texts))

    def documents(self, refuse=None):
        for number, text in enumerate(self.texts):
            yield Document(f"d{number}", f"Title {number}", text)


@pytest.fixture(scope="module")
def word_pieces() -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer of syllables that drops white space, unlike the byte-level one."""
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    vocabulary = ["[UNK]", "[PAD]", *syllables, *(f"##{syllable}" for syllable in syllables)]
    rust = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", pad_token="[PAD]")


def made_up_texts(count: int, words: int) -> list[str]:
    draw = random.Random(1)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    word = lambda: "".join(draw.choices(syllables, k=draw.choice([1, 2, 3])))  # noqa: E731
    return ["".join(word() + draw.choice([" ", "  ", "\n"]) for _ in range(words + n)).strip() for n in range(count)]


def letters(text: str) -> str:
    return "".join(text.split())


def test_two_tokenizers_read_the_same_words(tmp_path, tokenizer, word_pieces, monkeypatch):
    monkeypatch.setattr("dream.store.tokens.BATCH_ITEMS", 3)  # several batches
    store = open_or_build(tmp_path, ListCorpus(made_up_texts(8, 60)), word_pieces, tokenizer, **LENGTHS)
    spell = lambda ids: "".join(t.removeprefix("##") for t in word_pieces.convert_ids_to_tokens(ids))  # noqa: E731
    assert len(store.windows) > 16
    for window in range(len(store.windows)):
        texts = store.window_text(window)
        assert [tokenizer.decode(ids) for ids in store.window_tokens(window, SCORER)] == [*texts]
        context, _ = store.window_tokens(window, ENCODER)
        assert spell(context) == letters(texts[0])
        assert len(store.window_tokens(window, SCORER)[1]) == LENGTHS["target_tokens"]
    for passage in range(len(store.passages)):
        text = store.passage_text(passage)
        assert spell(store.passage_tokens(passage, ENCODER)) == letters(text)
        assert letters(tokenizer.decode(store.passage_tokens(passage, SCORER))) == letters(text)


def test_one_tokenizer_is_stored_once(tmp_path, tokenizer):
    texts = made_up_texts(3, 60)
    store = open_or_build(tmp_path, ListCorpus(texts), tokenizer, tokenizer, **LENGTHS)
    assert not (store.path / "scorer_ids.bin").exists()
    assert tokenizer.decode(store.tokens[SCORER]) == "".join(texts)
    assert [store.texts[row] for row in range(3)] == texts
    assert [store.document_names[row] for row in range(3)] == ["d0", "d1", "d2"]
    assert store.titles[2] == "Title 2"


def test_document_frequency_counts_passages(tmp_path, tokenizer):
    store = open_or_build(tmp_path, ListCorpus(made_up_texts(4, 50)), tokenizer, tokenizer, **LENGTHS)
    expected = np.zeros(len(tokenizer))
    for passage in range(len(store.passages)):
        expected[list(set(store.passage_tokens(passage, ENCODER).tolist()))] += 1
    assert store.encoder_document_frequency.tolist() == expected.tolist()


def test_duplicates_are_dropped_and_found_under_their_ids(tmp_path, tokenizer):
    a, b, c = made_up_texts(3, 60)
    corpus = ListCorpus([a, b, f"  {a.replace(' ', chr(10))} ", " \n", c, b])
    store = open_or_build(tmp_path, corpus, tokenizer, tokenizer, **LENGTHS)
    assert (
        store.manifest["counts"] | {"documents_read": 6, "empty": 1, "duplicates": 2, "documents": 3}
        == (store.manifest["counts"])
    )
    assert store.rows_of(["d0", "d2", "d3", "d4", "d5", "nobody"]) == {"d0": 0, "d2": 0, "d4": 2, "d5": 1}
    assert set(store.passage_documents.tolist()) == {0, 1, 2}
    everything = open_or_build(tmp_path, ListCorpus(corpus.texts, False), tokenizer, tokenizer, **LENGTHS)
    assert everything.manifest["counts"]["documents"] == 5


def test_short_documents_have_passages_but_no_window(tmp_path, tokenizer):
    texts = [*made_up_texts(2, 60), "bade", "\x00"]
    store = open_or_build(tmp_path, ListCorpus(texts), tokenizer, tokenizer, **LENGTHS)
    assert set(store.passage_documents.tolist()) == {0, 1, 2, 3}
    assert set(store.windows["document"].tolist()) == {0, 1}


def test_windows_whose_context_the_encoder_cannot_read_are_left_out(tmp_path, tokenizer, word_pieces):
    readable = made_up_texts(2, 60)
    dropped = "\u200b" * 40 + readable[0]  # zero-width spaces: tokens of the byte-level tokenizer only
    store = open_or_build(tmp_path, ListCorpus([dropped, *readable]), word_pieces, tokenizer, **LENGTHS)
    assert (np.diff(store.windows["tokens"], axis=2) > 0).all()
    assert {0, 1, 2} == set(store.windows["document"].tolist())


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], DataError, "0 documents were read"),
        (["", " \n"], DataError, "2 documents were read, none of them with text"),
        (["only one " * 30], DataError, "only one document"),
        (["bade"] * 3, DataError, "only one document"),
        (["bade", "fogu"], ConfigError, "data.target_tokens=12: .* 22 tokens"),
    ],
)
def test_unusable_corpora_leave_nothing_behind(tmp_path, tokenizer, texts, error, message):
    with pytest.raises(error, match=message):
        open_or_build(tmp_path, ListCorpus(texts), tokenizer, tokenizer, **LENGTHS)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_built_once_for_each_settings(tmp_path, tokenizer, monkeypatch):
    corpus = ListCorpus(made_up_texts(3, 60))
    first = open_or_build(tmp_path, corpus, tokenizer, tokenizer, **LENGTHS)
    tokenizer(["a b"], truncation=True, max_length=1)  # calls of the tokenizer change no store
    monkeypatch.setattr(build_module, "BatchTokenizer", None)
    assert open_or_build(tmp_path, corpus, tokenizer, tokenizer, **LENGTHS).hash == first.hash
    monkeypatch.undo()
    other = open_or_build(tmp_path, corpus, tokenizer, tokenizer, **(LENGTHS | {"passage_tokens": 21}))
    assert other.hash != first.hash
    assert np.diff(other.passages["tokens"][:, ENCODER]).max() <= 21


def test_an_incomplete_store_is_named(tmp_path):
    with pytest.raises(DataError, match="not a complete store"):
        Store(tmp_path)


def test_passage_batch(tmp_path, tokenizer):
    store = open_or_build(tmp_path, ListCorpus(made_up_texts(3, 60)), tokenizer, tokenizer, **LENGTHS)
    batch = store.passage_batch([3, 0], longest=5)
    assert batch.ids_BT.tolist() == [store.passage_tokens(row, ENCODER)[:5].tolist() for row in (3, 0)]
    assert batch.mask_BT.all()


def test_samples_are_spread_over_the_corpus():
    corpus = ListCorpus(["x" * 10] * 100)
    assert len(list(sample_texts(corpus, 250))) == 25
    assert len(list(sample_texts(corpus, 10_000))) == 100


def test_the_manifest_records_settings_and_counts(tmp_path, tokenizer):
    store = open_or_build(tmp_path, ListCorpus(made_up_texts(3, 60)), tokenizer, tokenizer, **LENGTHS)
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["lengths"] == [20, 24, 10, 12]
    assert manifest["counts"]["passages"] == len(store.passages)
    assert manifest["counts"]["encoder_tokens"] == len(store.tokens[ENCODER])
    assert store.path.name.endswith(manifest["hash"])
