"""Passages that may not be candidates of a window, because they could contain its target."""

import numpy as np

from dream.batch import WindowBatch
from dream.store.store import Store

MODES = ("auto", "document", "overlap")


def excluded(ids_BM: np.ndarray, windows: WindowBatch, store: Store, mode: str) -> np.ndarray:
    """mask_BM bool, true if the passage may not be a candidate of the window, or if the id is -1.

    Args:
        ids_BM: passage ids of each window; or (1, U), to test the same U passages for each window.
        mode: `document` excludes all passages of the window's own document (like REALM's trivial candidates,
            https://arxiv.org/abs/2002.08909). `overlap` excludes only passages with text that the language model is
            asked for, because it would copy it: see `excluded_ranges`. `auto`: `document` if the language model is
            asked for the continuation or for questions, otherwise `overlap`.
    """
    first_B, end_B = excluded_ranges(windows.window_ids_B.cpu().numpy(), store, mode)
    return (ids_BM < 0) | ((ids_BM >= first_B[:, None]) & (ids_BM < end_B[:, None]))


def excluded_ranges(window_ids_B: np.ndarray, store: Store, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """(first_B, end_B): the excluded passages of a window have the ids first ≤ id < end.

    They are one range, because a document's passages have consecutive ids in text order. With `overlap` these are the
    passages that overlap or touch the window (context and continuation). If the language model is asked only for the
    context, they are the passages whose part that is read overlaps the context. No passage contains a question.
    """
    windows = store.window_rows(window_ids_B)
    is_question_B = windows["characters"][:, 0] < 0
    first_B, end_B = store.passages_of(windows["document"])
    end_B = np.where(is_question_B, first_B, end_B)
    if excludes_document(mode, store):
        return first_B, end_B
    found = np.empty((2, len(windows)), dtype=np.int64)
    for b, (start, middle, end) in enumerate(windows["characters"]):
        if is_question_B[b]:
            found[:, b] = 0
            continue
        own = store.readings["characters"][first_B[b] : end_B[b]]
        if store.target == "context":
            found[:, b] = np.searchsorted(own[:, 1], start, side="right"), np.searchsorted(own[:, 0], middle, "left")
        else:
            found[:, b] = np.searchsorted(own[:, 1], start, side="left"), np.searchsorted(own[:, 0], end, "right")
    return first_B + found[0], first_B + found[1]


def excludes_document(mode: str, store: Store) -> bool:
    """Whether no passage of a window's own document can be a candidate."""
    return mode == "document" or (mode == "auto" and (store.target == "continuation" or store.questions is not None))


def fewest_allowed(store: Store, mode: str, enough: int) -> int:
    """The smallest number of allowed passages of any window, or a lower bound of it that is at least `enough`."""
    passages = len(store.passage_documents)
    allowed = passages - int(np.bincount(store.passage_documents).max(initial=0))
    if excludes_document(mode, store) or allowed >= enough:
        return allowed
    worst = passages
    for start in range(0, len(store.windows), 100_000):
        chunk = np.arange(start, min(start + 100_000, len(store.windows)))
        first_B, end_B = excluded_ranges(chunk, store, mode)
        worst = min(worst, passages - int((end_B - first_B).max(initial=0)))
    return worst
