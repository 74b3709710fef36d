"""Passages that may not be candidates of a window. Run: pytest tests/candidates/test_exclusion.py

Each document has 12 one-letter words in passages of 2, so passages 0-5 and 6-11. Windows are 2 + 2 words: windows 0-2
of document 0 span its passages 0-1, 2-3 and 4-5, windows 3-5 those of document 1.
"""

import numpy as np
import pytest

from dream.candidates.exclusion import excluded, fewest_allowed

TEXTS = ["a b c d e f g h i j k l", "m n o p q r s t u v w x"]


@pytest.fixture
def store(make_store):
    store = make_store(TEXTS, passage=2, context=2, target=2)
    assert len(store.passages) == 12
    assert len(store.windows) == 6
    return store


def barred(store, batch_of, mode, windows):
    mask_BM = excluded(np.arange(-1, 12)[None], batch_of(store, windows), store, mode)
    assert mask_BM[:, 0].all()  # -1 is never a candidate
    return [set(np.flatnonzero(row[1:]).tolist()) for row in mask_BM]


def test_document(store, batch_of):
    assert barred(store, batch_of, "document", [0, 2, 3]) == [set(range(6)), set(range(6)), set(range(6, 12))]


def test_overlap_bars_what_overlaps_or_touches(store, batch_of):
    expected = [{0, 1, 2}, {1, 2, 3, 4}, {3, 4, 5}, {6, 7, 8}]
    assert barred(store, batch_of, "overlap", [0, 1, 2, 3]) == expected


def test_overlap_agrees_with_the_character_ranges(store, batch_of):
    for window in range(6):
        start, _, end = store.windows["characters"][window]
        own = store.passages["document"] == store.windows["document"][window]
        touches = (store.passages["characters"][:, 1] >= start) & (store.passages["characters"][:, 0] <= end)
        assert barred(store, batch_of, "overlap", [window]) == [set(np.flatnonzero(own & touches).tolist())]


def test_fewest_allowed(store):
    assert fewest_allowed(store, "document", 100) == 6
    assert fewest_allowed(store, "overlap", 100) == 8  # the middle window bars 4 of 12
