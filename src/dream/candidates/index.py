"""The passages nearest to the query in the current index generation: what makes the retriever learn from itself."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dream.batch import WindowBatch
from dream.errors import require
from dream.store.store import Store

if TYPE_CHECKING:
    from dream.indexes.generation import IndexHandle


class IndexCandidates:
    """Searches `over_retrieve` times as many passages as asked for, because the window's own document falls away.

    Before the first generation it proposes nothing. A stale generation costs recall, not correctness: similarities in
    the loss are computed afresh.
    """

    def __init__(self, over_retrieve: int) -> None:
        require(over_retrieve >= 1, "candidates.sources.index.over_retrieve", over_retrieve, "choose 1 or more")
        self.over_retrieve = over_retrieve

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        self.index = index

    def propose(self, windows: WindowBatch, query_BD: Tensor, k: int, step: int) -> np.ndarray:
        wanted = k * self.over_retrieve
        if self.index.current is None:
            return np.full((len(windows), wanted), -1, dtype=np.int64)
        _, ids_BM = self.index.search(query_BD.detach().float(), wanted)
        return ids_BM.cpu().numpy()
