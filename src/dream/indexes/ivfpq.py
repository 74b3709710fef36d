"""Nearest passages among tens of millions: FAISS's inverted lists with product quantisation, then exact re-ranking.

The codes are small enough for the memory. The best passages by the codes are compared again by their embeddings, which
stay in the snapshot's files.

Shape suffixes: Q queries, K results of a query, M passages that are compared again, N passages of the corpus, D
embedding width.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from dream.indexes.base import NOTHING, best_first, float32, pad_results
from dream.indexes.exact import ExactIndex
from dream.indexes.faiss import ADD_ROWS, FILE, FaissIndex, write_index
from dream.utils.atomic_io import write_json
from dream.utils.errors import DataError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)

FEWEST = 20_000  # passages; fewer are searched exactly, which is as fast
MOST_LISTS = 65_536
TRAINED, ERROR = "trained.faiss", "error.json"  # the index without passages; its error when it was trained
WORSE = 1.05  # growth of the error from which the index is trained again
SAMPLE = 8_192  # rows, spread evenly over the corpus, whose error is measured
QUERIES = 32  # whose candidates are compared at a time


class IVFPQIndex(FaissIndex):
    """Codes in RAM or mapped from a file, and embeddings that are read from the files of the snapshot.

    Centroids are trained for the first snapshot of a run, and again when the error of the codes has grown by 5 %.

    Args:
        factory: FAISS index_factory string with `{lists}`, which becomes about 4·√N, a power of two.
        search_params: as of `FaissIndex`, e.g. nprobe: the number of lists that are read.
        rerank: passages compared exactly for each requested result.

    Raises:
        ConfigError: as `FaissIndex`, or `rerank` is below 1.

    Example:
        >>> index = IVFPQIndex("IVF{lists},PQ32", {"nprobe": 32}, rerank=4)
    """

    def __init__(self, factory: str, search_params: dict[str, Any] | None, rerank: int) -> None:
        super().__init__(factory, search_params)
        require(rerank >= 1, "index.rerank", rerank, "at least 1")
        self.rerank = rerank
        self._trained: Any = None
        self._error = 0.0
        self._exact: ExactIndex | None = None
        self._chunks: list[np.ndarray] = []

    def description(self) -> dict[str, Any]:
        return super().description() | {"kind": "ivfpq", "fewest": FEWEST}

    def build(self, embeddings_ND: Iterable[np.ndarray], count: int, width: int) -> None:
        self._chunks = list(embeddings_ND)
        if self._searches_exactly(count):
            log.info(f"  {count:,} passages are few: index=ivfpq searches fewer than {FEWEST:,} exactly")
            return
        sample = _sample(self._chunks, count)
        if self._trained is None or self._trained.d != width or _error(self._trained, sample) > WORSE * self._error:
            index = self._new(width, self.factory.replace("{lists}", str(lists_for(count))))
            log.info(f"  training the centroids of {index.nlist:,} lists" if hasattr(index, "nlist") else "  training")
            self._train(index, self._chunks, count)
            self._trained, self._error = index, _error(index, sample)
        index = faiss.clone_index(self._trained)
        for chunk in self._chunks:
            for start in range(0, len(chunk), ADD_ROWS):
                index.add(float32(chunk[start : start + ADD_ROWS]))
        self._index = self._tuned(index)

    def search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self._exact is not None:
            return self._exact.search(query_QD, k)
        query = float32(query_QD.detach().float().cpu().numpy())
        wanted = min(self._index.ntotal, self.rerank * k)
        _, ids_QM = self._index.search(query, wanted)
        parts = [self._compare(query[at : at + QUERIES], ids_QM[at : at + QUERIES], k)
                 for at in range(0, max(1, len(query)), QUERIES)]  # fmt: skip
        sim_QK, ids_QK = (torch.cat(part).to(query_QD.device) for part in zip(*parts, strict=True))
        return sim_QK, ids_QK

    def save(self, folder: Path) -> None:
        if self._exact is None:
            write_index(self._index, folder / FILE)
            write_index(self._trained, folder / TRAINED)
            write_json(folder / ERROR, self._error)

    def load(self, folder: Path, embeddings_ND: Iterable[np.ndarray]) -> None:
        self._chunks = list(embeddings_ND)
        if self._searches_exactly(sum(map(len, self._chunks))):
            return
        self.reuse(folder)
        self._index = self._tuned(faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY))

    def reuse(self, folder: Path) -> None:
        """Build the next index with the centroids of this snapshot, if it has any."""
        if not (folder / TRAINED).exists():
            return
        try:
            self._error = float((folder / ERROR).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / ERROR}: cannot be read ({error}); refresh the index") from error
        self._trained = faiss.read_index(str(folder / TRAINED))

    def _searches_exactly(self, count: int) -> bool:
        self._exact = None
        if count < FEWEST:
            self._exact = ExactIndex(rows_per_chunk=65_536, keep_on_device=False)
            self._exact.build(self._chunks, 0, 0)
        return self._exact is not None

    def _compare(self, query: np.ndarray, ids_QM: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """The k of these passages with the largest inner products of their embeddings."""
        found, place_QM = np.unique(ids_QM, return_inverse=True)
        rows = torch.from_numpy(_rows(self._chunks, np.maximum(found, 0)))
        sim_QU = torch.from_numpy(query) @ rows.T
        sim_QM = sim_QU.gather(1, torch.from_numpy(place_QM.reshape(ids_QM.shape)))
        ids = torch.from_numpy(ids_QM)
        return pad_results(*best_first(sim_QM.masked_fill(ids == NOTHING, float("-inf")), ids), k)


def lists_for(count: int) -> int:
    """About 4·√count lists, a power of two."""
    return min(MOST_LISTS, 2 ** round(np.log2(4 * count**0.5)))


def _sample(chunks: list[np.ndarray], count: int) -> np.ndarray:
    return _rows(chunks, np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64))


def _rows(chunks: list[np.ndarray], ids: np.ndarray) -> np.ndarray:
    """float32 embeddings of these passages, in ascending order."""
    ends = np.cumsum([len(chunk) for chunk in chunks])
    parts = np.split(ids, np.searchsorted(ids, ends[:-1]))
    return np.concatenate([float32(chunk[part - (end - len(chunk))]) for chunk, part, end in
                           zip(chunks, parts, ends, strict=True)])  # fmt: skip


def _error(index: Any, rows: np.ndarray) -> float:
    """Mean squared distance of the rows from what their codes stand for."""
    return float(np.mean(np.sum((index.sa_decode(index.sa_encode(rows)) - rows) ** 2, axis=1)))
