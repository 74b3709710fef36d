"""Tokenises and cuts batches of documents. One batch does not depend on another, so processes can share the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dream.corpora.base import Document
from dream.store.cut import Batch, cut_leads, cut_passages
from dream.store.tables import ENCODER, PASSAGE, SCORER
from dream.store.tokens import BatchTokenizer
from dream.store.windows import WindowCutter


@dataclass
class CutBatch:
    """What the store keeps of a batch. Documents and tokens are counted from the beginning of the batch.

    Attributes:
        documents: number of documents.
        strings: for `text`, `id` and `title`: all strings in UTF-8, and the length of each in bytes.
        passages: rows of the table of passages.
        windows: rows of the table of windows.
        ids: token ids of the encoder, and of the scorer if it has another tokenizer.
        lengths: number of the encoder's and of the scorer's tokens.
        frequency: token ids of the encoder, and number of passages that contain each; None: not counted.
        found: number of titles, sentences or headings, of any length.
    """

    documents: int
    strings: dict[str, tuple[bytes, np.ndarray]]
    passages: np.ndarray
    windows: np.ndarray
    ids: list[np.ndarray]
    lengths: list[int]
    frequency: tuple[np.ndarray, np.ndarray] | None
    found: int


class BatchCutter:
    """Tokenises and cuts a batch of documents.

    Args:
        tokenizers: of the encoder and of the scorer.
        lengths: maximum lengths of passages and contexts, minimum length of a context, length of a target; in tokens.
        context: kind of the contexts, one of `contexts.CONTEXTS`.
        passages_per_document: keep only the first passages of each document; None: all.
    """

    def __init__(
        self, tokenizers: Sequence[BatchTokenizer], lengths: Sequence[int], context: str,
        passages_per_document: int | None,
    ) -> None:  # fmt: skip
        longest, *window_lengths = lengths
        cut: Any = partial(cut_leads, count=passages_per_document) if passages_per_document else cut_passages
        self.cut_passages = partial(cut, longest=longest)
        self.cut_windows = WindowCutter(context, *window_lengths)
        self.counts_tokens = not passages_per_document
        self.sides = list(tokenizers)
        self.same = self.sides[ENCODER].fingerprint == self.sides[SCORER].fingerprint

    def __call__(self, documents: Sequence[Document]) -> CutBatch:
        """Cut these documents. No text may be empty."""
        texts = [document.text for document in documents]
        encoder = self.sides[ENCODER](texts)
        tokens = [encoder, encoder if self.same else self.sides[SCORER](texts)]
        batch = Batch(texts, tokens)
        passages = batch.table(ENCODER, self.cut_passages, PASSAGE)
        windows, found = self.cut_windows(batch, documents)
        strings = {"text": texts, "id": [document.id for document in documents],
                   "title": [document.title for document in documents]}  # fmt: skip
        return CutBatch(
            documents=len(documents),
            strings={kind: _encoded(values) for kind, values in strings.items()},
            passages=passages,
            windows=windows,
            ids=[side.ids_T for side in (tokens[:1] if self.same else tokens)],
            lengths=[len(side.ids_T) for side in tokens],
            frequency=_frequency(encoder.ids_T, passages["tokens"][:, ENCODER]) if self.counts_tokens else None,
            found=found,
        )


def _encoded(strings: list[str]) -> tuple[bytes, np.ndarray]:
    """(all strings in UTF-8, length of each in bytes)"""
    encoded = [string.encode() for string in strings]
    return b"".join(encoded), np.array([len(string) for string in encoded], dtype=np.int64)


def _frequency(ids_T: np.ndarray, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct token ids, number of ranges that contain each). The ranges cover all of `ids_T` in order."""
    passage_T = np.repeat(np.arange(len(ranges)), ranges[:, 1] - ranges[:, 0])
    order_T = np.argsort(ids_T, kind="stable")
    ids_T, passage_T = ids_T[order_T], passage_T[order_T]
    first_T = np.ones(len(ids_T), dtype=bool)
    first_T[1:] = (ids_T[1:] != ids_T[:-1]) | (passage_T[1:] != passage_T[:-1])
    return np.unique(ids_T[first_T], return_counts=True)
