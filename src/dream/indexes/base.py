"""What an index is, and the one order in which every index returns its results.

Shape suffixes: Q queries, K results of a query, N passages of the corpus, D embedding width.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

NOTHING = -1  # passage id where fewer than k passages were found; its similarity is -inf


class Index(Protocol):
    """Finds the passages whose embeddings have the largest inner product with a query. One file and one YAML add one.

    A snapshot copies the object (`copy.copy`) and builds the copy, so `build` and `load` must assign new attributes
    and not change what the old ones hold.
    """

    def description(self) -> dict[str, Any]:
        """JSON-able knobs that the built index depends on; an index with another description is built anew."""
        ...

    def build(self, embeddings_ND: Iterable[np.ndarray], count: int, width: int) -> None:
        """Index `count` rows of `width`, given as consecutive chunks of float16 or float32; the row is the id."""
        ...

    def search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(sim_QK float32, ids_QK int64) on the queries' device, best first, equal similarities by lower id.

        Where fewer than k passages are found, ids are -1 and similarities -inf, last.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` needs besides the embeddings, if anything."""
        ...

    def load(self, folder: Path, embeddings_ND: Iterable[np.ndarray]) -> None:
        """Become the index that was saved in `folder`, built over these embeddings."""
        ...


def best_first(sim_QK: Tensor, ids_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Sort by falling similarity, then by rising id."""
    by_id = ids_QK.argsort(dim=1)
    sim_QK, ids_QK = sim_QK.gather(1, by_id), ids_QK.gather(1, by_id)
    sim_QK, by_sim = sim_QK.sort(dim=1, descending=True, stable=True)
    return sim_QK, ids_QK.gather(1, by_sim)


def pad_results(sim_QK: Tensor, ids_QK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Append nothing, found nowhere, until each query has k results."""
    missing = k - ids_QK.shape[1]
    if missing <= 0:
        return sim_QK[:, :k], ids_QK[:, :k]
    pad = (0, missing)
    return (
        torch.nn.functional.pad(sim_QK, pad, value=float("-inf")),
        torch.nn.functional.pad(ids_QK, pad, value=NOTHING),
    )
