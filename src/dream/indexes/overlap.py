"""How much the neighbourhoods of passages change from one index snapshot to the next."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dream.indexes.exact import ExactIndex
from dream.store.permutation import permute

if TYPE_CHECKING:
    from dream.indexes.snapshot import IndexSnapshot

PROBES, POOL, NEIGHBOURS = 256, 16_384, 10
SEED = 20_260_627  # fixed, so every run compares the same passages


def overlap(old: "IndexSnapshot", new: "IndexSnapshot") -> float:
    """Similarity of two snapshots' neighbourhoods, 0 to 1. It is low if the encoder has changed much between them.

    For a passage, it is the share of its 10 nearest passages by the old embeddings that are also among the 10 nearest
    by the new embeddings. The result is the mean over up to 256 random passages. Neighbours are searched exactly among
    the same 16,384 random passages (or the whole corpus if it is smaller), so the cost does not grow with the corpus.
    """
    count = min(old.count, new.count)
    if count < 2:
        return 1.0
    near_old, near_new = _neighbours_in(old, count), _neighbours_in(new, count)
    return float((near_old[:, :, None] == near_new[:, None, :]).any(2).float().mean())


def _neighbours_in(snapshot: "IndexSnapshot", count: int) -> Tensor:
    """rows_PK in the pool. The snapshot keeps them, because it is also compared with the next one."""
    if count not in snapshot.neighbours:
        pool = permute(SEED, np.arange(min(POOL, count)), count)
        snapshot.neighbours[count] = _neighbours(snapshot.rows(pool), min(NEIGHBOURS, len(pool) - 1))
    return snapshot.neighbours[count]


def _neighbours(embedding_ND: np.ndarray, k: int) -> Tensor:
    """rows_PK: for each of the first P = `PROBES` rows, the k nearest other rows."""
    index = ExactIndex(rows_per_chunk=POOL, keep_on_device=False)
    index.build([embedding_ND], *embedding_ND.shape)
    _, rows_PK = index.search(torch.from_numpy(embedding_ND[:PROBES]), k + 1)
    itself = rows_PK == torch.arange(len(rows_PK))[:, None]
    itself[:, -1] |= ~itself.any(1)  # if a row has more than k copies, it may be missing in its own results
    return rows_PK[~itself].view(len(rows_PK), k)
