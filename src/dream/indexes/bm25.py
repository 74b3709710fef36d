"""BM25 over the store's passages: a candidate source for the cold start, and the baseline of every evaluation.

Stop words and formula are bm25s' defaults (Lucene's BM25, k1 1.5, b 0.75, English stop words, no stemming). So are the
words, except that an underscore ends one: nDCG@10 on CoSQA .290 → .363, on docstrings .363 → .402, on prose unchanged.
"""

import logging
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN

from dream.store.store import Store
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import DataError
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)


logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG, which Hydra's root handler would print

Unit = Literal["passage", "document"]  # what a row of the index is

LAYOUT = 2  # raise when words or formula change, so that cached indexes are made anew
WORD = re.compile(r"[^\W_]{2,}")
STOP_WORDS = frozenset(STOPWORDS_EN)


def words(text: str) -> list[str]:
    """Lower-cased runs of two or more letters and digits that are not stop words."""
    return [word for word in WORD.findall(text.lower()) if word not in STOP_WORDS]


def passage_texts(store: Store) -> Iterator[str]:
    """All passages in order; each document is decoded once."""
    document, text = -1, ""
    for row in store.passages:
        if row["document"] != document:
            document = int(row["document"])
            text = store.texts[document]
        start, end = row["characters"]
        yield text[start:end]


class _TermRows:
    """Term ids of each passage, 4 bytes a word, in the shape that bm25s takes: `ids` gives one list at a time."""

    def __init__(self, texts: Iterator[str]) -> None:
        self.vocab: dict[str, int] = {}
        self.terms = array("i")
        self.ends = array("q")
        for text in texts:
            self.terms.extend(self.vocab.setdefault(word, len(self.vocab)) for word in words(text))
            self.ends.append(len(self.terms))

    @property
    def ids(self) -> "_TermRows":
        return self

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for end in self.ends:
            yield self.terms[start:end].tolist()
            start = end


class BM25Index:
    """An inverted index on disk, memory-mapped. Scores of all (term, passage) pairs are computed when it is built."""

    def __init__(self, path: Path, unit: Unit = "passage") -> None:
        self.unit = unit
        try:
            index = bm25s.BM25.load(path, mmap=True, load_corpus=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a complete BM25 index ({error}); delete the folder and run again") from error
        self.vocabulary: dict[str, int] = index.vocab_dict
        self.passages: int = index.scores["num_docs"]
        self.scores = np.asarray(index.scores["data"])  # still mapped; slices of a plain array are made faster
        self.rows = np.asarray(index.scores["indices"])
        self.ends = np.asarray(index.scores["indptr"])

    @classmethod
    def open_or_build(cls, store: Store, unit: Unit = "passage") -> "BM25Index":
        """The index of this store's passages, from the cache beside the store; built first if it is not there.

        While it is built, memory holds 4 bytes for each word of the corpus and about 50 for each distinct word of each
        passage; afterwards only the vocabulary. With `unit="document"` the rows are whole documents instead.
        """
        path = store.cache_folder("bm25") / f"bm25-{store.hash}-v{LAYOUT}{'' if unit == 'passage' else '-documents'}"
        if not verify_or_discard(path):
            documents = len(store.texts)
            texts = passage_texts(store) if unit == "passage" else (store.texts[row] for row in range(documents))
            count = len(store.passages) if unit == "passage" else documents
            log.info(f"Building the BM25 index of {count:,} {unit}s")
            bar = progress(texts, total=count, unit=unit, unit_scale=True, desc="bm25")
            rows = _TermRows(bar)
            index = bm25s.BM25()
            index.index(rows, create_empty_token=False, show_progress=False)
            with new_directory(path) as unfinished:
                index.save(unfinished, corpus=None, allow_pickle=False)
        return cls(path, unit)

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores_QK float32, ids_QK int64), best first, ties by lower id; id -1 and score -inf where nothing matches."""
        scores_QK = np.full((len(texts), k), -np.inf, dtype=np.float32)
        ids_QK = np.full((len(texts), k), -1, dtype=np.int64)
        for q, text in enumerate(texts):
            scores, ids = top_k(self.scores_of(text), k)
            scores_QK[q, : len(ids)] = scores
            ids_QK[q, : len(ids)] = ids
        return scores_QK, ids_QK

    def _terms(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(distinct known term ids, how often each occurs)"""
        known = [term for word in words(text) if (term := self.vocabulary.get(word)) is not None]
        return np.unique(np.asarray(known, dtype=np.int64), return_counts=True)

    def scores_of(self, text: str) -> np.ndarray:
        """scores_N float32 of all rows; 0 where nothing matches."""
        scores_N = np.zeros(self.passages, dtype=np.float32)
        for term, count in zip(*self._terms(text), strict=True):
            postings = slice(self.ends[term], self.ends[term + 1])
            np.add.at(scores_N, self.rows[postings], self.scores[postings] * np.float32(count))
        return scores_N


def top_k(scores_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, rows) of the at most k highest positive scores, best first, ties by lower row."""
    matches = np.flatnonzero(scores_N > 0)
    if len(matches) > k > 0:
        least = np.partition(scores_N[matches], -k)[-k]
        matches = matches[scores_N[matches] >= least]
    best = matches[np.argsort(-scores_N[matches], kind="stable")][:k]
    return scores_N[best], best
