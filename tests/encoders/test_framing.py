"""Prefixes and special tokens around texts, for tokenizers of six kinds. Run: pytest tests/encoders/test_framing.py"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tokenizers import Tokenizer

from dream.encoders.framing import Framing
from dream.store.ragged import pad_tokens
from dream.store.tokens import BatchTokenizer

PREFIXES = ["", "query: ", "passage:", "search the text: ", "<s>query: ", "find (the) 7 "]
LONG = 1000
TOKENIZERS = {name: make() for name, make in KINDS.items()}
words = st.sampled_from(["river", "Stone", "7", "émile", "the", "reads", "(water)", "xyzzy", "water,", "12"])
texts = st.lists(words, min_size=1, max_size=6).map(" ".join)


def joined(tokenizer, text):
    """The tokenizer's own ids, with its special tokens around."""
    return tokenizer(text)["input_ids"]


def as_text(tokenizer, text):
    """Ids of a text in which special tokens are plain text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return backend.encode(text).ids


def from_the_store(framing, text, side):
    """The ids that a document's first passage is fed with."""
    rows = BatchTokenizer(framing.store_tokenizer)([text]).ids_T
    batch = framing.frame_ids(pad_tokens([rows], framing.pad_id), side)
    return batch.ids_BT[0][batch.mask_BT[0]].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", PREFIXES)
@settings(max_examples=25, deadline=None)
@given(text=texts)
def test_the_ids_are_those_of_the_joined_text(kind, prefix, text):
    tokenizer = TOKENIZERS[kind]
    framing = Framing(tokenizer, {"query": prefix, "passage": prefix})
    expected = joined(tokenizer, prefix + text)
    assert framing.frame_texts([text], "query", LONG)[0] == expected
    assert framing.frame_texts([text], "passage", LONG)[0] == expected
    if not (prefix.endswith(":") and text.startswith("(")):  # ":(" may be one token, which two pieces cannot have
        assert from_the_store(framing, text, "passage") == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spelled", ["</s>", "river </s> stone", "<s>", "<pad> river"])
@pytest.mark.parametrize("prefix", ["", "query: "])
def test_a_special_token_that_a_text_spells_is_text(kind, spelled, prefix):
    tokenizer = TOKENIZERS[kind]
    framing = Framing(tokenizer, {"query": prefix, "passage": prefix})
    expected = as_text(tokenizer, prefix + spelled)
    for side in ("query", "passage"):
        ids = framing.frame_texts([spelled], side, LONG)[0]
        assert kind == "unigram" or ids == expected  # Unigram's own model knows "</s>" as a piece of text
        assert not {0, 1, 2} & set(ids[1:-1])
    assert from_the_store(framing, spelled, "passage") == ids


def test_a_special_token_that_a_prefix_spells_is_special():
    tokenizer = TOKENIZERS["byte_level"]
    framing = Framing(tokenizer, {"query": "<s>query: ", "passage": ""})
    assert framing.frame_texts(["river"], "query", LONG)[0] == joined(tokenizer, "<s>query: river")
    # One of the text stays text, although one of the prefix does not.
    query = tokenizer("query: river </s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert framing.frame_texts(["river </s>"], "query", LONG)[0] == [1, 1, *query, 2]


def test_windows_get_the_blank_that_passages_without_a_prefix_lack():
    """The store's ids fit the passages, which have no prefix; after a query prefix "river" becomes " river"."""
    tokenizer = TOKENIZERS["byte_level"]
    framing = Framing(tokenizer, {"query": "query: ", "passage": ""})
    assert from_the_store(framing, "the river", "passage") == joined(tokenizer, "the river")
    assert from_the_store(framing, "the river", "query") == joined(tokenizer, "query: the river")
    assert from_the_store(framing, " the river", "query") == joined(tokenizer, "query: the river")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_and_padding_stays_last(kind):
    framing = Framing(TOKENIZERS[kind], {"query": "query: ", "passage": "passage: "})
    whole = framing.frame_texts(["the river the river the river"], "query", LONG)[0]
    cut = framing.frame_texts(["the river the river the river"], "query", 2)[0]
    assert cut == [*whole[: len(framing.before("query")) + 2], 2]
    assert len(cut) <= framing.tokens + 2
    batch = framing.frame_ids(pad_tokens([[5, 6, 7], [8]], framing.pad_id), "passage")
    before = framing.before("passage")
    assert batch.mask_BT.sum(1).tolist() == [len(before) + 4, len(before) + 2]
    assert batch.ids_BT[1][~batch.mask_BT[1]].tolist() == [0, 0]
    assert batch.ids_BT[1][batch.mask_BT[1]].tolist()[: len(before)] == before


def test_the_store_keeps_the_tokenizer_if_it_can():
    """WordPiece needs no other one, so that stores are shared between encoders with and without a prefix."""
    tokenizer = TOKENIZERS["word_piece"]
    assert Framing(tokenizer, {"query": "query: ", "passage": "passage: "}).store_tokenizer is tokenizer
