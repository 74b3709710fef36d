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


def test_auto_depends_on_what_is_asked(make_store, store, batch_of):
    assert barred(store, batch_of, "auto", [0, 3]) == [set(range(6)), set(range(6, 12))]
    asked = make_store(TEXTS, passage=2, context=2, target=2, asked="both")
    assert barred(asked, batch_of, "auto", [0, 1]) == barred(store, batch_of, "overlap", [0, 1])


def test_asked_for_the_context_only_passages_with_the_context_are_barred(make_store, batch_of):
    """Windows 0-2 have their contexts in passages 0, 2 and 4, window 3 in passage 6. The next passage may be read."""
    asked = make_store(TEXTS, passage=2, context=2, target=2, asked="context")
    assert barred(asked, batch_of, "auto", [0, 1, 2, 3]) == [{0}, {2}, {4}, {6}]
    assert barred(asked, batch_of, "document", [0]) == [set(range(6))]
    assert fewest_allowed(asked, "auto", 100) == 11


def test_asked_for_a_beginning_the_first_passage_is_read_without_it(make_store, batch_of):
    """Passages of 3 words: the first one is read as its third word, so it can be a candidate of its own window."""
    asked = make_store(TEXTS, passage=3, context=2, target=2, kind="beginning", asked="context")
    assert [asked.window_text(window)[0].split() for window in (0, 1)] == [["a", "b"], ["m", "n"]]
    assert barred(asked, batch_of, "auto", [0, 1]) == [set(), set()]
    assert len(asked.read_tokens(0, 1)) == 1
    whole = make_store(TEXTS, passage=2, context=2, target=2, kind="beginning", asked="context")
    assert barred(whole, batch_of, "auto", [0, 1]) == [{0}, {6}]  # nothing else would be left of them to read


def test_fewest_allowed(store):
    assert fewest_allowed(store, "document", 100) == 6
    assert fewest_allowed(store, "overlap", 100) == 8  # the middle window bars 4 of 12
