"""Passages that may not be candidates of a window, because they could contain its target."""

import numpy as np

from dream.batch import WindowBatch
from dream.store.store import Store

MODES = ("document", "overlap")


def excluded(ids_BM: np.ndarray, windows: WindowBatch, store: Store, mode: str) -> np.ndarray:
    """mask_BM bool, true if the passage may not be a candidate of the window, or if the id is -1.

    Args:
        ids_BM: passage ids of each window; or (1, U), to test the same U passages for each window.
        mode: `document` excludes all passages of the window's own document (like REALM's trivial candidates,
            https://arxiv.org/abs/2002.08909). `overlap` excludes only passages whose character range overlaps or
            touches the window (context and target).
    """
    first_B, end_B = excluded_ranges(windows.window_ids_B.cpu().numpy(), store, mode)
    return (ids_BM < 0) | ((ids_BM >= first_B[:, None]) & (ids_BM < end_B[:, None]))


def excluded_ranges(window_ids_B: np.ndarray, store: Store, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """(first_B, end_B): the excluded passages of a window have the ids first ≤ id < end.

    They are one range, because a document's passages have consecutive ids in text order.
    """
    windows = store.windows[window_ids_B]
    first_B = np.searchsorted(store.passage_documents, windows["document"], side="left")
    end_B = np.searchsorted(store.passage_documents, windows["document"], side="right")
    if mode == "document":
        return first_B, end_B
    touching = np.empty((2, len(windows)), dtype=np.int64)
    for b, (start, _, end) in enumerate(windows["characters"]):
        own = store.passages["characters"][first_B[b] : end_B[b]]
        touching[0, b] = first_B[b] + np.searchsorted(own[:, 1], start, side="left")
        touching[1, b] = first_B[b] + np.searchsorted(own[:, 0], end, side="right")
    return touching[0], touching[1]


def fewest_allowed(store: Store, mode: str, enough: int) -> int:
    """The smallest number of allowed passages of any window, or a lower bound of it that is at least `enough`."""
    passages = len(store.passage_documents)
    allowed = passages - int(np.bincount(store.passage_documents).max(initial=0))
    if mode == "document" or allowed >= enough:
        return allowed
    worst = passages
    for start in range(0, len(store.windows), 100_000):
        chunk = np.arange(start, min(start + 100_000, len(store.windows)))
        first_B, end_B = excluded_ranges(chunk, store, mode)
        worst = min(worst, passages - int((end_B - first_B).max(initial=0)))
    return worst
