"""Tokenises batches of documents into flat arrays for the store."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from dream.store.words import WordTokens, kind_of_words
from dream.utils.atomic_io import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH_CHARACTERS = 2_000_000  # a tokenizer's output takes about 40 bytes per character
BATCH_ITEMS = 2_000
PIECE_CHARACTERS = 1_000_000

Item = TypeVar("Item")


@dataclass
class Tokens:
    """One tokenizer's tokens of a concatenated batch of documents.

    Args:
        ids_T: Token ids.
        starts_T: First character of each token, ascending, counted from the beginning of the batch.
        bounds: First token of each document, and the end of the last document; (documents + 1,).
    """

    ids_T: np.ndarray
    starts_T: np.ndarray
    bounds: np.ndarray


class BatchTokenizer:
    """A tokenizer without truncation, padding and special tokens. "<pad>" in a document is read as text.

    Args:
        tokenizer: Any fast tokenizer of transformers. It is not changed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        self.pad_id = tokenizer.pad_token_id or 0
        self.vocabulary = 1 + max(tokenizer.get_vocab().values())
        self.dtype = np.dtype("<u2" if self.vocabulary <= 2**16 else "<u4")
        text = tokenizer.backend_tokenizer.to_str()
        settings = json.loads(text)
        self.rust = plain_tokenizer(text)
        self.bytes_V = _bytes_of_tokens(self.rust, settings, self.vocabulary)
        self.kind = kind_of_words(settings)
        self.words = self._words()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"rust": self.rust.to_str(), "words": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, rust=plain_tokenizer(state["rust"]))
        self.words = self._words()

    def _words(self) -> WordTokens | None:
        """Reads each distinct word once, which is several times as fast; None if this tokenizer does not allow it."""
        return WordTokens(self._parts, self.kind) if self.kind else None

    def __call__(self, texts: list[str]) -> Tokens:
        """The tokens of these texts. No text may be empty."""
        if self.words and max(map(len, texts)) <= PIECE_CHARACTERS:
            ids_T, starts_T, bounds = self.words(texts)
            return Tokens(ids_T, np.maximum.accumulate(starts_T), bounds)
        return self._whole(texts)

    def _whole(self, texts: list[str]) -> Tokens:
        """Like a call, for any tokenizer."""
        pieces = ((document, piece) for document, text in enumerate(texts) for piece in _pieces(text))
        counts = np.zeros(len(texts) + 1, dtype=np.int64)
        ids, starts, characters = [], [], 0
        for batch in bounded_batches(pieces, lambda numbered: len(numbered[1])):
            owners, parts = zip(*batch, strict=True)
            ids_of_parts, starts_T = self._parts(parts)
            np.add.at(counts, np.array(owners) + 1, [len(part) for part in ids_of_parts])
            ids += ids_of_parts
            starts.append(starts_T + characters)
            characters += sum(map(len, parts))
        return Tokens(np.concatenate(ids), np.maximum.accumulate(np.concatenate(starts)), np.cumsum(counts))

    def _parts(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """(ids of each text, first character of each token, counted from the beginning of the first text)"""
        return self._by_bytes(texts) or self._by_offsets(texts)

    def _by_bytes(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray] | None:
        """Ids of each text, and the first character of each token, computed from the tokens' lengths in bytes.

        This is 1.5 times as fast as with the tokenizer's offsets. None if the sum of lengths differs from the text's.
        """
        if self.bytes_V is None:
            return None
        encodings = self.rust.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]
        encoded = [text.encode() for text in texts]
        ends_T = np.cumsum(self.bytes_V[np.concatenate(ids)])
        ends = np.append(0, ends_T)[np.cumsum([len(part) for part in ids])]
        if not np.array_equal(ends, np.cumsum([len(text) for text in encoded])):
            self.bytes_V = None
            return None
        opens_character = np.frombuffer(b"".join(encoded), dtype=np.uint8) & 0xC0 != 0x80
        character_of_byte = np.cumsum(opens_character) - 1
        return ids, character_of_byte[ends_T - self.bytes_V[np.concatenate(ids)]]

    def _by_offsets(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """Like `_by_bytes`, for any tokenizer, with the tokenizer's offsets."""
        ids, starts, characters = [], [], 0
        for text, encoding in zip(texts, self.rust.encode_batch(list(texts), add_special_tokens=False), strict=True):
            ids.append(np.array(encoding.ids, dtype=self.dtype))
            starts.append(np.array([start for start, _ in encoding.offsets], dtype=np.int64) + characters)
            characters += len(text)
        return ids, np.concatenate(starts)


def plain_tokenizer(settings: str) -> Tokenizer:
    """The tokenizer with these settings, without truncation and padding. It reads special tokens as text."""
    tokenizer = Tokenizer.from_str(settings)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _bytes_of_tokens(tokenizer: Tokenizer, settings: dict[str, Any], vocabulary: int) -> np.ndarray | None:
    """Length in bytes of each token of a byte-level tokenizer that does not change the text. Otherwise None."""
    steps = settings["pre_tokenizer"] or {}
    last = steps["pretokenizers"][-1] if steps.get("type") == "Sequence" else steps
    if settings["normalizer"] or last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    bytes_V = np.zeros(vocabulary, dtype=np.int64)
    for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items():
        bytes_V[token_id] = len(token)  # byte-level vocabularies write a byte as one character
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        bytes_V[token_id] = len(added.content.encode())
    return bytes_V


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash of a fast tokenizer's settings, without truncation and padding, because each call can change these."""
    return _fingerprint(tokenizer.backend_tokenizer.to_str())


@lru_cache(maxsize=4)  # a run asks several times, and 50,000 tokens take a tenth of a second
def _fingerprint(settings: str) -> str:
    parts = json.loads(settings).items()
    return fingerprint({key: value for key, value in parts if key not in ("truncation", "padding")})


def bounded_batches(items: Iterable[Item], characters_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Batches with bounded numbers of characters and items. A longer item is the last one of its batch."""
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += characters_of(item)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_ITEMS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """Split a long text before spaces into pieces that a tokenizer can process."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind(" ", start + 1, start + PIECE_CHARACTERS)
        end = end if end > 0 else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:] if start else text
