"""Tokenises batches of documents for the store: texts in, flat arrays out."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from tokenizers import Tokenizer

from dream.files import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH_CHARACTERS = 2_000_000  # of which a tokenizer's answer takes about 40 bytes each
BATCH_ITEMS = 2_000
PIECE_CHARACTERS = 1_000_000

Item = TypeVar("Item")


@dataclass
class Tokens:
    """One tokenizer's tokens of a batch of documents, end to end; characters count from the batch's first."""

    ids_T: np.ndarray
    starts_T: np.ndarray  # the first character of each token, ascending
    bounds: np.ndarray  # (documents + 1,) the token where each document begins, and the end of the last one


class BatchTokenizer:
    """A tokenizer stripped to its bones: no truncation, no padding, and a "<pad>" that a document spells out is text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        self.pad_id = tokenizer.pad_token_id or 0
        self.vocabulary = 1 + max(tokenizer.get_vocab().values())
        self.dtype = np.dtype("<u2" if self.vocabulary <= 2**16 else "<u4")
        self.rust = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.rust.no_truncation()
        self.rust.no_padding()
        self.rust.encode_special_tokens = True

    def __call__(self, texts: list[str]) -> Tokens:
        """The tokens of these texts, none of which may be empty."""
        pieces = ((document, piece) for document, text in enumerate(texts) for piece in _pieces(text))
        counts = np.zeros(len(texts) + 1, dtype=np.int64)
        ids, starts, characters = [], [], 0
        for batch in bounded_batches(pieces, lambda numbered: len(numbered[1])):
            encodings = self.rust.encode_batch([piece for _, piece in batch], add_special_tokens=False)
            for (document, piece), encoding in zip(batch, encodings, strict=True):
                ids.append(np.array(encoding.ids, dtype=self.dtype))
                starts.append(np.array([start for start, _ in encoding.offsets], dtype=np.int64) + characters)
                counts[document + 1] += len(ids[-1])
                characters += len(piece)
        return Tokens(np.concatenate(ids), np.maximum.accumulate(np.concatenate(starts)), np.cumsum(counts))


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash of what a fast tokenizer does to text, other than truncating and padding, which calls of it change."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    return fingerprint({key: value for key, value in settings.items() if key not in ("truncation", "padding")})


def bounded_batches(items: Iterable[Item], characters_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Batches bounded in characters and in number; an item longer than the bound ends its batch."""
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
    """The text in pieces that a tokenizer can take at once, split before a space."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind(" ", start + 1, start + PIECE_CHARACTERS)
        end = end if end > 0 else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:] if start else text
