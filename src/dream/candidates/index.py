"""Candidates found by the retriever itself: the passages nearest to the query in the current index snapshot."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dream.batch import WindowBatch
from dream.store.store import Store

if TYPE_CHECKING:
    from dream.indexes.snapshot import IndexHandle

OVER_RETRIEVE = 4  # passages found for each requested one: passages of the window's own document are excluded later


class IndexCandidates:
    """Searches the current index snapshot. Before the first snapshot, it proposes nothing.

    An old snapshot may miss good candidates, but the loss stays correct: its similarities come from the current
    encoder.
    """

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        self.index = index

    def propose(self, windows: WindowBatch, query_BD: Tensor, k: int, step: int) -> np.ndarray:
        wanted = k * OVER_RETRIEVE
        if self.index.current is None:
            return np.full((len(windows), wanted), -1, dtype=np.int64)
        _, ids_BM = self.index.search(query_BD.detach().float(), wanted)
        return ids_BM.cpu().numpy()
