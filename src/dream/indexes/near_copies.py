"""Finds texts that are nearly the same: passages for the candidates of training, documents for evaluation.

Near copies share most of their shingles (runs of 5 words): the Jaccard similarity of their sets of shingles is at least
`least`. Pairs are proposed by MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman & Ullman 2014, §3.4), then
compared exactly. Nothing is random, so a store always has the same groups.

Shapes: N texts, S shingles of a text, B windows, U distinct passages, P pairs of a window and a passage.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from zlib import crc32

import numpy as np

from dream.indexes.bm25 import Unit, passage_texts
from dream.store.store import Store
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

LAYOUT = 1  # increase it when the groups change; cached groups are then found again
SHINGLE = 5  # words
BANDS, ROWS = (
    20,
    5,
)  # a pair with Jaccard similarity s is proposed with probability 1 - (1 - s^5)^20: .8: .9996, .7: .975
LEAST = 0.7  # lowest similarity at which nearly all pairs are proposed
MOST_COMPARED = 50  # groups of one bucket that a text is compared with
WORD = re.compile(r"[^\W_]{1,20}")  # long runs are cut, because some scripts have no spaces between words
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_DRAWS = np.random.default_rng(20_260_627).integers(0, 2**63, (2, BANDS * ROWS, 1), dtype=np.uint64)
FACTORS, OFFSETS = _DRAWS[0] * np.uint64(2) + np.uint64(1), _DRAWS[1]


def find_groups(store: Store, unit: Unit, least: float) -> np.ndarray:
    """group_N int64 of all passages or documents: the lowest id of its group. Cached next to the BM25 index.

    A text joins the first group whose first text is a near copy of it. So the first texts of two groups are not near
    copies of each other, and two other texts of a group can be less similar than `least`. A text without near copies
    is alone in its group. Memory is about 40 bytes per text; signatures of 160 bytes per text are in a temporary file.

    Args:
        unit: whether to group passages or whole documents.
        least: lowest Jaccard similarity of near copies, from `LEAST` to 1.
    """
    name = f"near_copies-{store.hash}-v{LAYOUT}-{least}{'' if unit == 'passage' else '-documents'}"
    path = store.cache_folder("near_copies") / name
    if not verify_or_discard(path):
        whole = (store.texts[row] for row in range(len(store.texts)))
        texts, count = (passage_texts(store), len(store.passages)) if unit == "passage" else (whole, len(store.texts))
        log.info(f"Looking for near copies among {count:,} {unit}s")
        bar = progress(texts, total=count, unit=unit, unit_scale=True, desc="near copies")
        with new_directory(path) as unfinished:
            read = store.passage_text if unit == "passage" else store.texts.__getitem__
            group_N = group(bar, read, count, least)
            np.save(unfinished / "groups.npy", group_N)
        log.info(f"  {count - len(np.unique(group_N)):,} of {count:,} {unit}s are near copies of another one")
    return np.load(path / "groups.npy", allow_pickle=False)


def group(texts: Iterator[str], read: Callable[[int], str], count: int, least: float) -> np.ndarray:
    """group_N int64. See `find_groups`.

    Args:
        texts: all texts in order.
        read: the text of a number.
        count: number of texts.
        least: lowest Jaccard similarity of near copies.
    """
    group_N = np.arange(count)
    if not count:
        return group_N
    shingles_of = lru_cache(maxsize=4096)(lambda text_id: shingles(read(text_id)))
    with tempfile.TemporaryFile() as file:
        for text in texts:
            file.write(band_keys(shingles(text)).tobytes())
        file.flush()
        keys_NB = np.memmap(file, np.uint64, "r", shape=(count, BANDS))
        for band in range(BANDS):
            for ids in _buckets(np.array(keys_NB[:, band])):
                _join(ids, group_N, shingles_of, least)
        del keys_NB
    return np.array([_root(group_N, text_id) for text_id in range(count)])


def shingles(text: str) -> np.ndarray:
    """Sorted hashes of the distinct shingles of a text, uint64, (S,). A text of fewer than 5 words has one shingle."""
    words = np.array([crc32(word.encode()) for word in WORD.findall(text.lower())], dtype=np.uint64)
    width = min(SHINGLE, len(words))
    if not width:
        return words
    hashes = np.zeros(len(words) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashes = (hashes ^ (hashes >> np.uint64(31))) * MULTIPLIER + words[offset : offset + len(hashes)]
    return np.unique(hashes)


def band_keys(shingles_S: np.ndarray) -> np.ndarray:
    """Keys of a text in all bands, uint64, (BANDS,). Equal keys propose a pair. All are 0 if there are no shingles."""
    if not len(shingles_S):
        return np.zeros(BANDS, dtype=np.uint64)
    least_R = ((shingles_S * FACTORS + OFFSETS) >> np.uint64(32)).min(1).reshape(BANDS, ROWS)
    keys_B = np.zeros(BANDS, dtype=np.uint64)
    for row in range(ROWS):
        keys_B = (keys_B ^ (keys_B >> np.uint64(29))) * MULTIPLIER + least_R[:, row]
    return keys_B


def jaccard(one_S: np.ndarray, other_S: np.ndarray) -> float:
    """Size of the intersection of two sets of shingles, divided by the size of their union."""
    common = len(np.intersect1d(one_S, other_S, assume_unique=True))
    return common / (len(one_S) + len(other_S) - common)


def _buckets(keys_N: np.ndarray) -> Iterator[np.ndarray]:
    """Ascending ids of the texts that share a key. The key 0 is left out."""
    order_N = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order_N]
    bounds = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))
    ends = np.append(bounds[1:], len(keys_N))
    for start, end in zip(bounds[ends - bounds > 1], ends[ends - bounds > 1], strict=True):
        if sorted_N[start]:
            yield order_N[start:end]


def _join(ids: np.ndarray, group_N: np.ndarray, shingles_of: Callable[[int], np.ndarray], least: float) -> None:
    """Join the groups of a bucket whose first texts are similar, in place."""
    kept: list[int] = []
    for root in sorted({_root(group_N, text_id) for text_id in ids.tolist()}):
        similar = (one for one in kept[:MOST_COMPARED] if jaccard(shingles_of(one), shingles_of(root)) >= least)
        first = next(similar, None)
        if first is None:
            kept.append(root)
        else:
            group_N[root] = first


def _root(group_N: np.ndarray, text_id: int) -> int:
    while group_N[text_id] != text_id:
        group_N[text_id] = group_N[group_N[text_id]]
        text_id = int(group_N[text_id])
    return text_id


class NearCopies:
    """The groups of a store's passages, and which documents have near copies of a passage.

    Args:
        store: the store.
        least: lowest Jaccard similarity of near copies.
    """

    def __init__(self, store: Store, least: float) -> None:
        self.group_N = find_groups(store, "passage", least)
        self.documents_N = store.passage_documents
        self._is_shared_N = np.bincount(self.group_N, minlength=len(self.group_N))[self.group_N] > 1

    def of_documents(self, documents_B: np.ndarray, passages_U: np.ndarray) -> np.ndarray:
        """copy_BU bool: whether passage u is a near copy of a passage of document b, or this passage itself."""
        groups_G, column_U = np.unique(self.group_N[passages_U], return_inverse=True)
        return self._has_group(documents_B, groups_G)[:, column_U]

    def between(self, documents_B: np.ndarray, documents_A: np.ndarray) -> np.ndarray:
        """same_BA bool: whether two documents are the same or have passages that are near copies of each other."""
        groups_G = np.unique(self._shared_groups(documents_B)[1])
        has_BG, has_AG = (self._has_group(ids, groups_G).astype(np.float32) for ids in (documents_B, documents_A))
        return (has_BG @ has_AG.T > 0) | (documents_B[:, None] == documents_A)

    def _has_group(self, documents_B: np.ndarray, groups_G: np.ndarray) -> np.ndarray:
        has_BG = np.zeros((len(documents_B), len(groups_G)), dtype=bool)
        if len(groups_G):
            row_P, group_P = self._shared_groups(documents_B)
            column_P = np.searchsorted(groups_G, group_P).clip(max=len(groups_G) - 1)
            known_P = groups_G[column_P] == group_P
            has_BG[row_P[known_P], column_P[known_P]] = True
        return has_BG

    def _shared_groups(self, documents_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row in documents_B, group) of all passages of these documents that have near copies."""
        first_B, end_B = (np.searchsorted(self.documents_N, documents_B, side=side) for side in ("left", "right"))
        counts_B = end_B - first_B
        row_P = np.repeat(np.arange(len(documents_B)), counts_B)
        passage_P = np.arange(counts_B.sum()) + np.repeat(first_B - np.cumsum(counts_B) + counts_B, counts_B)
        shared_P = self._is_shared_N[passage_P]
        return row_P[shared_P], self.group_N[passage_P[shared_P]]
