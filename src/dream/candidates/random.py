"""Random candidates. The helpful passages are compared with them."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dream.batch import WindowBatch
from dream.store.permutation import random_bits
from dream.store.store import Store

if TYPE_CHECKING:
    from dream.indexes.snapshot import IndexHandle


def draw_passages(seed: int, stream: int, windows: WindowBatch, count: int, passages: int) -> np.ndarray:
    """(B, count) int64 ids below `passages`, uniform, with repetitions.

    They depend only on the arguments and on the windows' positions in the run, so a resumed run draws the same ids.

    Args:
        stream: number of the random stream; different streams are independent.
    """
    window_ids_B = windows.window_ids_B.cpu().numpy()
    positions_B = windows.positions_B.cpu().numpy()
    bits_BM = random_bits(seed, stream, positions_B[:, None], window_ids_B[:, None], np.arange(count)[None])
    return (bits_BM % np.uint64(passages)).astype(np.int64)


class RandomCandidates:
    """Draws uniformly from all passages of the corpus.

    Args:
        seed: seed of the draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        self.passages = len(store.passage_documents)

    def propose(self, windows: WindowBatch, query_BD: Tensor, k: int, step: int) -> np.ndarray:
        """2k passage ids, because passages of the window's own document and repetitions are dropped later."""
        return draw_passages(self.seed, 0, windows, 2 * k, self.passages)
