"""Tokenising for the store. Run: pytest tests/store/test_tokens.py"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dream.store import tokens as tokens_module
from dream.store.tokens import BatchTokenizer, bounded_batches, tokenizer_fingerprint


@pytest.fixture(scope="module")
def byte_level(tokenizer) -> BatchTokenizer:
    return BatchTokenizer(tokenizer)


def word_level() -> PreTrainedTokenizerFast:
    """Lower-cased words of a closed vocabulary."""
    rust = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "red": 3, "house": 4}, unk_token="[UNK]"))
    rust.normalizer = normalizers.Lowercase()
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", pad_token="[PAD]")


def test_by_hand():
    tokens = BatchTokenizer(word_level())(["A red  house", "red"])
    assert tokens.ids_T.tolist() == [2, 3, 4, 3]
    assert tokens.starts_T.tolist() == [0, 2, 7, 12]
    assert tokens.bounds.tolist() == [0, 3, 4]


texts = st.lists(
    st.text(min_size=1, max_size=40).filter(lambda t: t.isprintable() or "\n" in t), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(texts)
def test_lengths_in_bytes_give_the_offsets(byte_level, texts):
    fast = byte_level._by_bytes(texts)
    ids, starts_T = byte_level._by_offsets(texts)
    assert fast is not None
    assert np.array_equal(np.concatenate(fast[0]), np.concatenate(ids))
    assert np.array_equal(fast[1], starts_T)


def test_tokenizers_that_change_the_text_are_asked_for_offsets(tokenizer):
    assert BatchTokenizer(word_level()).bytes_V is None
    rust = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    rust.normalizer = normalizers.NFC()
    assert BatchTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust)).bytes_V is None


def test_bytes_that_do_not_add_up_fall_back(tokenizer):
    bare = BatchTokenizer(tokenizer)
    expected = bare(["some text"])
    bare.bytes_V[expected.ids_T[0]] += 1
    assert np.array_equal(bare(["some text"]).starts_T, expected.starts_T)
    assert bare.bytes_V is None


def test_special_tokens_in_a_text_are_text(tokenizer, byte_level):
    ids = byte_level(["a <pad> b <sep>"]).ids_T
    assert not {tokenizer.pad_token_id, tokenizer.sep_token_id} & set(ids.tolist())
    assert tokenizer.decode(ids) == "a <pad> b <sep>"


def test_truncation_and_padding_of_a_tokenizer_do_not_matter():
    plain, changed = word_level(), word_level()
    changed(["a red house", "a"], truncation=True, max_length=2, padding="max_length")
    assert '"max_length":2' in changed.backend_tokenizer.to_str()
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(changed)
    assert BatchTokenizer(changed)(["a red house"]).ids_T.tolist() == [2, 3, 4]


def test_long_texts_are_tokenised_in_pieces(byte_level, monkeypatch):
    text = " ".join(["dana", "fogu", "é", "x" * 30] * 10)
    whole = byte_level([text, "dana"])
    monkeypatch.setattr(tokens_module, "PIECE_CHARACTERS", 37)
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 50)
    pieces = byte_level([text, "dana"])
    assert np.array_equal(pieces.ids_T, whole.ids_T)
    assert np.array_equal(pieces.starts_T, whole.starts_T)
    assert np.array_equal(pieces.bounds, whole.bounds)


def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 5)
    monkeypatch.setattr(tokens_module, "BATCH_ITEMS", 3)
    assert list(bounded_batches(["abc", "de", "f", "g", "h", "i" * 9, "j"], len)) == [
        ["abc", "de"],
        ["f", "g", "h"],
        ["i" * 9],
        ["j"],
    ]
    assert list(bounded_batches([], len)) == []
