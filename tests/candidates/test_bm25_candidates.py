"""BM25 as a source of candidates. Run: pytest tests/candidates/test_bm25_candidates.py"""

import torch

from dream.candidates.bm25 import BM25Candidates


def test_the_target_is_not_part_of_the_query(make_store, batch_of):
    """Window 0 is "ant" → "fox": passage 1 shares its context, passage 2 only its target."""
    store = make_store(["ant fox", "ant bee", "fox hen"])
    source = BM25Candidates()
    source.prepare(store, None)
    ids_BM = source.propose(batch_of(store, [0]), torch.zeros(1, 2), 2, 0)
    assert ids_BM.tolist() == [[0, 1, -1]]  # k = 2 and one more, for the window's own passage


def test_more_are_proposed_for_long_documents(make_store, batch_of):
    """Document 0 has 3 passages, which window 0 may not use: 2 + 3 are proposed to find passages 3 and 4."""
    store = make_store(["ant bee ant cat ant dog", "ant elk", "ant fox"], passage=2)
    source = BM25Candidates()
    source.prepare(store, None)
    [ids] = source.propose(batch_of(store, [0]), torch.zeros(1, 2), 2, 0).tolist()
    assert len(ids) == 5
    assert {3, 4} <= set(ids)
