"""Candidates found by BM25: useful before the encoder has learned anything."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dream.batch import WindowBatch
from dream.indexes.bm25 import BM25Index
from dream.store.store import Store

if TYPE_CHECKING:
    from dream.indexes.snapshot import IndexHandle


class BM25Candidates:
    """Searches the passages with the words of the window's context. The target is not part of the query."""

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        self.store = store
        self.index = BM25Index.open_or_build(store)

    def propose(self, windows: WindowBatch, query_BD: Tensor, k: int, step: int) -> np.ndarray:
        """(B, M) passage ids, best first, -1 at the end.

        M is k plus the number of passages of the batch's longest document: a window's own passages usually come first,
        and are excluded later.
        """
        first_B, end_B = self.store.passages_of(windows.document_ids_B.cpu().numpy())
        contexts = [self.store.window_text(window)[0] for window in windows.window_ids_B.tolist()]
        return self.index.search(contexts, k + int((end_B - first_B).max()))[1]
