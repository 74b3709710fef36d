"""BM25 over the store's passages or documents: a source of candidates, and the baseline of every evaluation.

The formula and its constants are Lucene's, but lengths of texts are exact: https://arxiv.org/abs/2407.03618. `words.py`
splits texts into words, as the language of the corpus requires.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Literal

import bm25s
import numpy as np
import torch

from dream.indexes.words import Analyzer
from dream.store.store import Store
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import DataError
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

logging.getLogger("bm25s").setLevel(logging.WARNING)  # its own level is DEBUG, which Hydra's root handler would print

Unit = Literal["passage", "document"]  # a row of the index is a passage or a document

LAYOUT = 4  # increase it when the words or the formula change; cached indexes are then rebuilt
GROUP = 64  # rows whose highest score is looked at first: a search for the k best then reads few rows a second time
COMPILED = 32  # with numba: number of queries from which it pays to load the compiled search
COMPILED_K = 128  # above this k, the search without numba is faster
K1, B = 1.2, 0.75  # how soon more occurrences of a word add nothing; how much long texts are penalised, 0 to 1


def bm25_settings(language: str | None) -> str:
    """What the scores depend on besides the texts; part of the names of caches."""
    return f"v{LAYOUT}-{language or 'plain'}-k{K1}-b{B}"


def passage_texts(store: Store) -> Iterator[str]:
    """Texts of all passages in id order. Each document is decoded once."""
    document, text = -1, ""
    for row in store.passages:
        if row["document"] != document:
            document = int(row["document"])
            text = store.texts[document]
        start, end = row["characters"]
        yield text[start:end]


class _Vocabulary(dict[str, int]):
    """The id of each word; a new word gets the next id."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class _TermRows:
    """Term ids of each passage, 4 bytes per word. bm25s reads `vocab` and iterates over `ids`, one list per passage."""

    def __init__(self, texts: Iterator[str], analyze: Callable[[str], list[str]]) -> None:
        self.vocab = _Vocabulary()
        self.terms = array("i")
        self.ends = array("q")
        for text in texts:
            self.terms.extend(map(self.vocab.__getitem__, analyze(text)))
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
    """A memory-mapped inverted index. The scores of all (term, passage) pairs are computed when it is built.

    Args:
        path: folder of a built index; `open_or_build` builds it first if needed.
        unit: what the rows are: passages, or whole documents.
        language: language of the texts and queries; None: plain words.

    Raises:
        DataError: the folder is not a complete index.

    Example:
        >>> scores_QK, ids_QK = BM25Index.open_or_build(store).search(["who wrote Emma"], k=10)
    """

    def __init__(self, path: Path, unit: Unit, language: str | None) -> None:
        self.unit, self.analyze = unit, Analyzer(language)
        try:
            index = bm25s.BM25.load(path, mmap=True, load_corpus=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a complete BM25 index ({error}); delete the folder and run again") from error
        self.vocabulary: dict[str, int] = index.vocab_dict
        self.passages: int = index.scores["num_docs"]
        self.scores, self.rows = (np.asarray(index.scores[key]) for key in ("data", "indices"))  # still memory-mapped
        self.ends = np.asarray(index.scores["indptr"], dtype=np.int64)

    @classmethod
    def open_or_build(cls, store: Store, unit: Unit = "passage") -> "BM25Index":
        """Open the index of this store in the cache folder next to the stores. It is built if missing or damaged.

        Building takes 4 bytes of memory for each word of the corpus, and about 50 bytes for each distinct word of each
        passage. Searching keeps only the vocabulary in memory.
        """
        name = f"bm25-{store.hash}-{bm25_settings(store.language)}{'' if unit == 'passage' else '-documents'}"
        path = store.cache_folder("bm25") / name
        if not verify_or_discard(path):
            documents = len(store.texts)
            texts = passage_texts(store) if unit == "passage" else (store.texts[row] for row in range(documents))
            count = len(store.passages) if unit == "passage" else documents
            log.info(f"Building the BM25 index of {count:,} {unit}s")
            bar = progress(texts, total=count, unit=unit, unit_scale=True, desc="bm25")
            rows = _TermRows(bar, Analyzer(store.language))
            index = bm25s.BM25(k1=K1, b=B)
            index.index(rows, create_empty_token=False, show_progress=False)
            with new_directory(path) as unfinished:
                index.save(unfinished, corpus=None, allow_pickle=False)
        return cls(path, unit, store.language)

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query.

        Returns:
            scores_QK float32 and ids_QK int64, best first. Equal scores are ordered by lower id. If fewer than k rows
            share a word with the query, the last ids are -1 and their scores -inf.
        """
        scores_QK = np.full((len(texts), k), -np.inf, dtype=np.float32)
        ids_QK = np.full((len(texts), k), -1, dtype=np.int64)
        if 0 < k <= COMPILED_K and len(texts) >= COMPILED and find_spec("numba"):
            self._search_compiled(texts, scores_QK, ids_QK)
            return scores_QK, ids_QK
        scores_N = np.zeros(self.passages, dtype=np.float32)
        for q, text in enumerate(texts):
            scores_N.fill(0)
            scores, ids = top_k(self._add_scores(text, scores_N), k)
            scores_QK[q, : len(ids)] = scores
            ids_QK[q, : len(ids)] = ids
        return scores_QK, ids_QK

    def _search_compiled(self, texts: list[str], scores_QK: np.ndarray, ids_QK: np.ndarray) -> None:
        """Write the same results as without numba. Each of torch's threads searches for a part of the queries."""
        from dream.indexes.bm25_compiled import best_rows

        known = self.vocabulary
        terms_Q = [[known[word] for word in self.analyze(text) if word in known] for text in texts]
        query_T = np.repeat(np.arange(len(texts)), [len(terms) for terms in terms_Q])
        term_T = np.fromiter(chain.from_iterable(terms_Q), dtype=np.int64, count=len(query_T))
        pairs, counts = np.unique(query_T * len(known) + term_T, return_counts=True)  # sorted, as those of `_terms`
        queries, terms = np.divmod(pairs, max(1, len(known)))
        bounds = np.searchsorted(queries, np.arange(len(texts) + 1))
        starts, ends = self.ends[terms], self.ends[terms + 1]
        threads = torch.get_num_threads()

        def search(first: int) -> None:
            scores_N = np.zeros(self.passages, dtype=np.float32)
            best_rows(self.rows, self.scores, starts, ends, counts, bounds, first, threads, scores_N,
                      scores_QK, ids_QK)  # fmt: skip

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(search, range(threads)))

    def scores_of(self, text: str) -> np.ndarray:
        """scores_N float32 of all rows; 0 if a row shares no word with the text."""
        return self._add_scores(text, np.zeros(self.passages, dtype=np.float32))

    def _terms(self, text: str) -> list[tuple[int, int]]:
        """(term, count) of a text's known words; sorted, so that sums are the same in whatever order the words come."""
        return sorted(Counter(term for word in self.analyze(text)
                              if (term := self.vocabulary.get(word)) is not None).items())  # fmt: skip

    def _add_scores(self, text: str, scores_N: np.ndarray) -> np.ndarray:
        for term, count in self._terms(text):
            postings = slice(self.ends[term], self.ends[term + 1])
            scores = self.scores[postings]
            np.add.at(scores_N, self.rows[postings], scores if count == 1 else scores * np.float32(count))
        return scores_N


def top_k(scores_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, rows) of at most k positive scores, highest first, equal scores by lower row."""
    matches = _may_be_best(scores_N, k)
    if len(matches) > k > 0:
        least = np.partition(scores_N[matches], -k)[-k]
        matches = matches[scores_N[matches] >= least]
    best = matches[np.argsort(-scores_N[matches], kind="stable")][:k]
    return scores_N[best], best


def _may_be_best(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Rows with a positive score, in order: the k best, and few others.

    Rows are looked at in groups. If the highest scores of k groups are at least x, no row below x is among the k best.
    """
    groups = len(scores_N) // GROUP
    if not 0 < k < groups:
        return np.flatnonzero(scores_N > 0)
    in_groups_RG = scores_N[: GROUP * groups].reshape(GROUP, groups)
    highest_G = in_groups_RG.max(0)
    least = max(np.partition(highest_G, -k)[-k], np.nextafter(np.float32(0), np.float32(1)))
    chosen = np.flatnonzero(highest_G >= least)
    row, group = np.divmod(np.flatnonzero(in_groups_RG[:, chosen] >= least), max(len(chosen), 1))
    rest = np.flatnonzero(scores_N[GROUP * groups :] >= least)
    return np.concatenate([row * groups + chosen[group], GROUP * groups + rest])
