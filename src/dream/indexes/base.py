"""The interface of an index, and the order in which all indexes return their results.

Shape suffixes: Q queries, K results of a query, N passages of the corpus, D embedding width.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

NOTHING = -1  # id that pads results if fewer than k passages were found; its similarity is -inf


class Index(Protocol):
    """Finds the passages whose embeddings have the largest inner product with a query.

    To add an index, add a file here and a YAML file in conf/index. Each snapshot builds a shallow copy of the object
    (`copy.copy`) while the original is still searched. So `build` and `load` must assign new attributes, and must not
    change the objects of the old attributes.
    """

    def description(self) -> dict[str, Any]:
        """Settings that the index depends on, as JSON values. If a saved index has other settings, it is rebuilt."""
        ...

    def build(self, embeddings_ND: Iterable[np.ndarray], count: int, width: int) -> None:
        """Index all embeddings.

        Args:
            embeddings_ND: consecutive chunks (rows, D) of float16 or float32. The passage id is the row number,
                counted over all chunks.
            count: N, number of rows of all chunks.
            width: D.
        """
        ...

    def search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k most similar passages of each query.

        Returns:
            sim_QK float32 and ids_QK int64 on the queries' device, best first. Equal similarities are ordered by lower
            id. If fewer than k passages are found, the last ids are -1 and their similarities -inf.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `load` needs in addition to the embeddings, if any."""
        ...

    def load(self, folder: Path, embeddings_ND: Iterable[np.ndarray]) -> None:
        """Load the index saved in `folder`, which was built over these embeddings."""
        ...


def best_first(sim_QK: Tensor, ids_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row by descending similarity, then by ascending id."""
    by_id = ids_QK.argsort(dim=1)
    sim_QK, ids_QK = sim_QK.gather(1, by_id), ids_QK.gather(1, by_id)
    sim_QK, by_sim = sim_QK.sort(dim=1, descending=True, stable=True)
    return sim_QK, ids_QK.gather(1, by_sim)


def pad_results(sim_QK: Tensor, ids_QK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Pad or cut the results of each query to k. Padding has id -1 and similarity -inf."""
    missing = k - ids_QK.shape[1]
    if missing <= 0:
        return sim_QK[:, :k], ids_QK[:, :k]
    pad = (0, missing)
    return (
        torch.nn.functional.pad(sim_QK, pad, value=float("-inf")),
        torch.nn.functional.pad(ids_QK, pad, value=NOTHING),
    )


def float32(rows_ND: np.ndarray) -> np.ndarray:
    """The rows, contiguous, as float32. torch converts float16 several times faster than NumPy."""
    return torch.from_numpy(np.ascontiguousarray(rows_ND)).float().numpy()
