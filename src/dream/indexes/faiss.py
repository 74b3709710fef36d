"""Nearest passages with FAISS: exact, or any approximation that has an index_factory string.

Search only in the main process. If a data loader worker is forked after the parent's first search, its own search hangs
in OpenMP, unless `faiss.omp_set_num_threads(1)` was called before.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from dream.indexes.base import NOTHING, best_first, float32, pad_results
from dream.utils.errors import ConfigError, require

FILE = "index.faiss"
TRAIN_POINTS = 262_144  # IVF and PQ are trained on at most this many rows, spread evenly over the corpus
ADD_ROWS = 65_536  # rows that are converted to float32 at a time
SPARE = 8  # additional results, to check whether other results have the same similarity as the k-th
MOST_TIES = 4_096  # if more results than this have the k-th similarity, FAISS decides which of them are returned

# Exact search uses matrix products only if queries × width reach a number. FAISS's own number, 128,000, is made for 20
# and more threads: with two, 128 queries of width 832 take 8 times as long without matrix products. FAISS's developers
# have measured 800 for each thread (pull request 5109). Older versions count only the queries; their number is 20.
_LEAST_PRODUCT = 800 * faiss.omp_get_max_threads()
faiss.cvar.distance_compute_blas_threshold = min(_LEAST_PRODUCT, faiss.cvar.distance_compute_blas_threshold)


class FaissIndex:
    """`faiss.index_factory(width, factory, METRIC_INNER_PRODUCT)` in RAM, over float32 embeddings.

    Building is deterministic, except for HNSW, whose graph is built by several threads.

    Args:
        factory: FAISS index_factory string, e.g. `Flat`, `IVF1024,Flat` or `HNSW32`.
        search_params: parameters that `faiss.ParameterSpace` can set, e.g. nprobe or efSearch. None: FAISS's defaults.

    Raises:
        ConfigError: FAISS does not know the factory string, it does not fit the width, the corpus has too few passages
            to train it, or the index does not have a search parameter. The constructor refuses an empty string; `build`
            checks the rest.

    Example:
        >>> index = FaissIndex("IVF1024,Flat", {"nprobe": 16})
    """

    def __init__(self, factory: str, search_params: dict[str, Any] | None = None) -> None:
        require(isinstance(factory, str) and bool(factory), "index.factory", factory, "e.g. Flat or IVF1024,Flat")
        require("IDMap" not in factory, "index.factory", factory, "leave IDMap out: rows of the store are the ids")
        self.factory = factory
        self.search_params = dict(search_params or {})
        self._index: Any = None

    def description(self) -> dict[str, Any]:
        return {"kind": "faiss", "factory": self.factory, "train_points": TRAIN_POINTS}

    def bytes_per_passage(self, width: int) -> int:
        """Memory of a passage in the index: its code, and in inverted lists its id. Links of graphs are not counted."""
        try:
            code = self._new(width, self.factory.replace("{lists}", "1")).sa_code_size()
        except RuntimeError:  # this kind does not say it; most keep the embedding
            code = 4 * width
        return code + 8 * ("IVF" in self.factory)

    def build(self, embeddings_ND: Iterable[np.ndarray], count: int, width: int) -> None:
        chunks = list(embeddings_ND)
        index = self._new(width, self.factory)
        if type(index) in (faiss.IndexFlat, faiss.IndexFlatIP):  # subclasses arrange the rows in other ways
            self._index = self._tuned(_filled(index, chunks, count))
            return
        if not index.is_trained:
            self._train(index, chunks, count)
        try:
            for chunk in chunks:
                for start in range(0, len(chunk), ADD_ROWS):
                    index.add(float32(chunk[start : start + ADD_ROWS]))
        except RuntimeError as error:
            raise ConfigError("index.factory", self.factory, f"FAISS cannot add passages to it ({_reason(error)}); "
                              "try Flat, IVF1024,Flat, HNSW32 or PQ16") from error  # fmt: skip
        self._index = self._tuned(index)

    def search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        query = float32(query_QD.detach().float().cpu().numpy())
        count = self._index.ntotal
        sim_QK, ids_QK = torch.empty(len(query), k), torch.empty(len(query), k, dtype=torch.int64)
        rows = torch.arange(len(query))
        fetch = min(count, k + SPARE)
        while len(rows):
            sims, ids = self._fetch(query[rows.numpy()], fetch)
            sim_QK[rows], ids_QK[rows] = pad_results(sims, ids, k)
            if fetch >= min(count, k + MOST_TIES):
                break
            rows = rows[(sims[:, -1] == sims[:, k - 1]) & sims[:, -1].isfinite()]
            fetch = min(count, 4 * fetch)
        return sim_QK.to(query_QD.device), ids_QK.to(query_QD.device)

    def save(self, folder: Path) -> None:
        if not isinstance(self._index, faiss.IndexFlat):  # which holds nothing but the embeddings
            write_index(self._index, folder / FILE)

    def load(self, folder: Path, embeddings_ND: Iterable[np.ndarray]) -> None:
        if (folder / FILE).exists():
            self._index = self._tuned(faiss.read_index(str(folder / FILE)))
        else:
            chunks = list(embeddings_ND)
            self.build(chunks, sum(map(len, chunks)), chunks[0].shape[1])

    def _new(self, width: int, factory: str) -> Any:
        try:
            index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ConfigError("index.factory", self.factory, f"FAISS cannot build it for width {width}: "
                              f"{_reason(error)}; try Flat, IVF1024,Flat, HNSW32 or PQ16") from error  # fmt: skip

        # Polysemous training orders PQ's centroids for a filter that only the parameter `ht` uses. It takes 100 times
        # as long as the rest of the training.
        inner = index
        while hasattr(inner, "index"):  # inside OPQ and other transforms
            inner = faiss.downcast_index(inner.index)
        if hasattr(inner, "do_polysemous_training") and "ht" not in self.search_params:
            inner.do_polysemous_training = False
        return index

    def _train(self, index: Any, chunks: list[np.ndarray], count: int) -> None:
        every = max(1, -(-count // TRAIN_POINTS))
        sample, first = [], 0
        for chunk in chunks:
            sample.append(float32(chunk[-first % every :: every]))
            first += len(chunk)
        points = np.concatenate(sample)
        try:
            index.train(points)
        except RuntimeError as error:
            raise ConfigError("index.factory", self.factory, f"{len(points):,} of {count:,} passages are too few to "
                              f"train it ({_reason(error)}); choose fewer lists, or Flat") from error  # fmt: skip

    def _tuned(self, index: Any) -> Any:
        for name, value in self.search_params.items():
            try:
                faiss.ParameterSpace().set_index_parameter(index, name, value)
            except (RuntimeError, TypeError) as error:
                raise ConfigError(f"index.search_params.{name}", value, f"index.factory={self.factory} has no such "
                                  f"parameter ({_reason(error)})") from error  # fmt: skip
        return index

    def _fetch(self, query: np.ndarray, fetch: int) -> tuple[Tensor, Tensor]:
        sims, ids = (torch.from_numpy(array) for array in self._index.search(query, fetch))
        return best_first(sims.masked_fill(ids == NOTHING, float("-inf")), ids)


def _filled(index: Any, chunks: list[np.ndarray], count: int) -> Any:
    """The flat index with these rows. `add` would take three times as long: it copies float32 rows as memory grows."""
    index.codes.resize(count * index.code_size)
    index.ntotal = count
    rows_ND = torch.from_numpy(faiss.rev_swig_ptr(index.get_xb(), count * index.d)).view(count, index.d)
    for part_RD, chunk in zip(rows_ND.split([len(chunk) for chunk in chunks]), chunks, strict=True):
        part_RD.copy_(torch.from_numpy(np.asarray(chunk)))
    return index


def write_index(index: Any, path: Path) -> None:
    """Write an index. FAISS's own writer does not report a disk that is full at the last bytes."""
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


def _reason(error: Exception) -> str:
    """FAISS's error message without the C++ function, file and condition."""
    message = re.search(r"\.cpp:\d+: (?:Error: )?(?:'.*' failed: )?(.*)", str(error))
    return message[1] if message and message[1] else str(error)
