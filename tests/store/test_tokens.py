"""Tokenising for the store. Run: pytest tests/store/test_tokens.py"""

import pickle

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
    assert np.array_equal(bare._whole(["some text"]).starts_T, expected.starts_T)
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


def bert() -> PreTrainedTokenizerFast:
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["[UNK]", "[PAD]", *letters, *(f"##{letter}" for letter in letters), "##ab", "北"]
    rust = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", pad_token="[PAD]")


def digits(tokenizer) -> PreTrainedTokenizerFast:
    """As in SmolLM2: each digit is a token."""
    rust = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    return PreTrainedTokenizerFast(tokenizer_object=rust)


ODD = "aA1é e\u0301İKǅß²½ſ_\u200c\u200d\u0301\u00a0\u2000\u2028\u3000\x0b\x0c\x1c\x1f\x85\u200b北한\n\t.,'-😀\u1100"


@pytest.mark.parametrize("kind", ["word", "scratch", "gpt2", "digits", "bert"])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet=ODD, min_size=1, max_size=40) | st.text(min_size=1, max_size=30), max_size=6))
def test_words_give_the_tokens_of_the_whole_text(tokenizer, lower_case_tokenizer, scratch_tokenizer, kind, texts):
    known = {"word": lower_case_tokenizer, "scratch": scratch_tokenizer, "gpt2": tokenizer, "digits": digits(tokenizer)}
    chosen = known.get(kind) or bert()
    tokenizer = BatchTokenizer(chosen)
    assert tokenizer.words is not None
    texts = [text for text in texts if text.strip()] + ["two words"]
    expected = tokenizer._whole(texts)
    for found in (tokenizer(texts), tokenizer(texts), BatchTokenizer(chosen)(texts)):
        assert np.array_equal(found.ids_T, expected.ids_T)
        assert found.ids_T.dtype == expected.ids_T.dtype
        assert np.array_equal(found.starts_T, expected.starts_T)
        assert np.array_equal(found.bounds, expected.bounds)


def test_words_are_tokenised_once_and_forgotten_if_there_are_too_many(lower_case_tokenizer, monkeypatch):
    tokenizer = BatchTokenizer(lower_case_tokenizer)
    tokenizer(["some words of some text"])
    assert list(tokenizer.words.numbers) == ["some", " words", " of", " some", " text"]
    monkeypatch.setattr("dream.store.words.MOST_WORDS", 3)
    assert tokenizer(["other words"]).ids_T.tolist() == tokenizer._whole(["other words"]).ids_T.tolist()
    assert list(tokenizer.words.numbers) == ["other", " words"]


def test_only_tokenizers_that_read_words_one_by_one_do_so(tokenizer, lower_case_tokenizer):
    assert BatchTokenizer(word_level()).words is None
    rust = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert BatchTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust)).words is None
    rust = Tokenizer.from_str(lower_case_tokenizer.backend_tokenizer.to_str())
    rust.add_tokens(["two words"])
    assert BatchTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust)).words is None
    rust = Tokenizer.from_str(lower_case_tokenizer.backend_tokenizer.to_str())
    rust.normalizer = normalizers.Sequence([normalizers.Replace(" ", "")])
    assert BatchTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust)).words is None


def test_a_copy_of_another_process_reads_the_same(lower_case_tokenizer, tokenizer):
    for chosen in (lower_case_tokenizer, tokenizer):
        original = BatchTokenizer(chosen)
        copy = pickle.loads(pickle.dumps(original))
        texts = ["<pad> is text, and so is é"]
        assert copy(texts).ids_T.tolist() == original(texts).ids_T.tolist()
        assert copy.fingerprint == original.fingerprint
