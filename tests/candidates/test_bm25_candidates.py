"""BM25 as a source of candidates. Run: pytest tests/candidates/test_bm25_candidates.py"""

import numpy as np
import torch

from dream.candidates.bm25 import BM25Candidates
from dream.data.window_datamodule import WindowStream


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


def test_what_is_searched_ahead_is_what_is_searched_at_once(store):
    """Also if a batch was expected that does not come, or with another number of candidates."""
    stream = WindowStream(store, 0, 8, 256, 8, 0.0, None, 0, 0, 0, 1)
    batches = [stream.batch(number) for number in range(4)]
    ahead, plain = BM25Candidates(), BM25Candidates()
    for source in (ahead, plain):
        source.prepare(store, None)
    for batch in batches[:3]:
        ahead.expect(batch, 5)
    for batch, k in ((batches[1], 5), (batches[2], 4), (batches[3], 5)):
        expected = plain.propose(batch, torch.empty(8, 0), k, 0)
        assert np.array_equal(ahead.propose(batch, torch.empty(8, 0), k, 0), expected)
    assert not ahead._ahead
