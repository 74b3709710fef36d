"""Token ids and texts in flat files that are read as memory maps. Offsets mark the rows."""

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dream.batch import TokenBatch


class ArrayWriter:
    """Appends rows to a raw file. The table may be larger than the memory, and its length need not be known."""

    def __init__(self, path: Path, dtype: np.dtype | type) -> None:
        self.file = path.open("wb")
        self.dtype = np.dtype(dtype)
        self.rows = 0

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)


class Strings:
    """Many strings in one UTF-8 file, each read on demand.

    Args:
        path: The file: all strings without separators.
        ends: Offset of the end of each string, in bytes, (strings,).
    """

    def __init__(self, path: Path, ends: np.ndarray) -> None:
        self.ends = ends
        self.path = path
        self.bytes: mmap.mmap | bytes = b""
        if path.stat().st_size:
            with path.open("rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.bytes[start : int(self.ends[row])].decode()

    def __reduce__(self):  # for pickling to spawned loader workers, which map the file themselves
        return Strings, (self.path, self.ends)


def pad_tokens(rows: Sequence[np.ndarray], pad_id: int, width: int | None = None) -> TokenBatch:
    """Pad rows of token ids at their end, to the longest row or to `width`."""
    width = max(1, width or max(len(row) for row in rows))
    ids_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(rows), width), dtype=bool)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row)] = row[:width]
        mask_BT[b, : len(row)] = True
    return TokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT))


def gather_tokens(
    tokens: np.ndarray, starts_B: np.ndarray, ends_B: np.ndarray, longest: int, pad_id: int
) -> TokenBatch:
    """Like `pad_tokens` of the first `longest` tokens of each tokens[start:end], but without a loop over the rows."""
    lengths_B1 = np.minimum(ends_B - starts_B, longest)[:, None]
    columns_T = np.arange(max(1, int(lengths_B1.max(initial=0))))
    mask_BT = columns_T < lengths_B1
    positions_BT = np.where(mask_BT, starts_B[:, None] + columns_T, 0)
    ids_BT = np.where(mask_BT, np.asarray(tokens)[positions_BT], pad_id).astype(np.int64)
    return TokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT))
