"""Candidates found by BM25: useful before the encoder has learned anything."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dream.batch import WindowBatch
from dream.indexes.bm25 import BM25Index
from dream.store.store import Store

if TYPE_CHECKING:
    from dream.indexes.snapshot import IndexHandle


class BM25Candidates:
    """Searches the passages with the words of the window's context. The target is not part of the query.

    A thread searches for the windows of the next step, while the encoder learns from those of this step.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._ahead: deque[tuple[WindowBatch, int, Future[np.ndarray]]] = deque()  # oldest first

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        self.store = store
        self.index = BM25Index.open_or_build(store)

    def expect(self, windows: WindowBatch, k: int) -> None:
        self._ahead.append((windows, k, self._thread.submit(self._search, windows, k)))

    def propose(self, windows: WindowBatch, query_BD: Tensor, k: int, step: int) -> np.ndarray:
        """(B, M) passage ids, best first, -1 at the end.

        M is k plus the number of passages of the batch's longest document: a window's own passages usually come first,
        and are excluded later.
        """
        while self._ahead:
            expected, expected_k, found = self._ahead.popleft()
            if expected_k == k and torch.equal(expected.window_ids_B, windows.window_ids_B.cpu()):
                return found.result()
        return self._search(windows, k)

    def _search(self, windows: WindowBatch, k: int) -> np.ndarray:
        documents_B = windows.document_ids_B.cpu().numpy()
        owned_B = np.searchsorted(self.store.passage_documents, documents_B, side="right") - np.searchsorted(
            self.store.passage_documents, documents_B, side="left"
        )
        contexts = [self.store.window_text(int(window))[0] for window in windows.window_ids_B]
        return self.index.search(contexts, k + int(owned_B.max()))[1]
