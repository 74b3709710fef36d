"""Exact nearest passages by matrix products in PyTorch, on the device of the queries.

On CPUs this is faster than FAISS's `Flat`. Use it unless the corpus is too large for exact search.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.indexes.base import best_first, pad_results
from dream.utils.errors import require

QUERIES = 1_024  # queries at a time


class ExactIndex:
    """Keeps the embeddings in float16 and computes inner products in float32, one chunk of passages at a time.

    Args:
        rows_per_chunk: passages of a matrix product. In addition to the embeddings, a search takes
            rows_per_chunk × (D + number of queries, at most 1,024) × 4 bytes.
        keep_on_device: if the queries are on an accelerator, copy the embeddings to it once per build (2·N·D bytes).
            False: each search copies them again, chunk by chunk.

    Raises:
        ConfigError: `rows_per_chunk` is below 1.

    Example:
        >>> index = ExactIndex(rows_per_chunk=65_536, keep_on_device=True)
        >>> index.build([np.eye(3, dtype=np.float16)], count=3, width=3)
        >>> sim_QK, ids_QK = index.search(torch.tensor([[0.0, 1.0, 0.0]]), k=2)  # ids [[1, 0]]
    """

    def __init__(self, rows_per_chunk: int, keep_on_device: bool) -> None:
        require(rows_per_chunk >= 1, "index.rows_per_chunk", rows_per_chunk, "at least 1")
        self.rows_per_chunk = rows_per_chunk
        self.keep_on_device = keep_on_device
        self._chunks: list[Tensor] = []

    def description(self) -> dict[str, Any]:
        return {"kind": "exact"}

    def build(self, embeddings_ND: Iterable[np.ndarray], count: int, width: int) -> None:
        self._chunks = [
            torch.from_numpy(np.asarray(shard[start : start + self.rows_per_chunk]))
            for shard in embeddings_ND
            for start in range(0, len(shard), self.rows_per_chunk)
        ]

    @torch.no_grad()
    def search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.keep_on_device and query_QD.device.type != "cpu":
            self._chunks = [chunk.to(query_QD.device) for chunk in self._chunks]
        with torch.autocast(query_QD.device.type, enabled=False), _full_float32():
            parts = [self._search(part_QD.float(), k) for part_QD in query_QD.detach().split(QUERIES)]
        return torch.cat([sim for sim, _ in parts]), torch.cat([ids for _, ids in parts])

    def save(self, folder: Path) -> None:
        """Write nothing: the index needs only the embeddings."""

    def load(self, folder: Path, embeddings_ND: Iterable[np.ndarray]) -> None:
        self.build(embeddings_ND, 0, 0)

    def _search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sim_QK = query_QD.new_empty(len(query_QD), 0)
        ids_QK = torch.empty(len(query_QD), 0, dtype=torch.int64, device=query_QD.device)
        first = 0
        for chunk_RD in self._chunks:
            sims, rows = _top(query_QD @ chunk_RD.to(query_QD.device).float().T, k)
            sim_QK, ids_QK = best_first(torch.cat([sim_QK, sims], 1), torch.cat([ids_QK, rows + first], 1))
            sim_QK, ids_QK = sim_QK[:, :k], ids_QK[:, :k]
            first += len(chunk_RD)
        return pad_results(sim_QK, ids_QK, k)


def _top(sim_QR: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row. If values are equal, the lowest columns; `topk` does not guarantee this."""
    k = min(k, sim_QR.shape[1])
    sim_QK, rows_QK = sim_QR.topk(k, dim=1)
    tied = (sim_QR >= sim_QK[:, -1:]).sum(1) > k
    if tied.any():
        sims, rows = sim_QR[tied].sort(dim=1, descending=True, stable=True)
        sim_QK[tied], rows_QK[tied] = sims[:, :k], rows[:, :k]
    return sim_QK, rows_QK


@contextmanager
def _full_float32() -> Iterator[None]:
    """Compute products without TF32 and bf16, even if the trainer allows them: rounding would reorder neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
