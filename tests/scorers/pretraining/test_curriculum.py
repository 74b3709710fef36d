"""Training sequences of the scratch scorer. Run: pytest tests/scorers/pretraining/test_curriculum.py"""

import numpy as np
import pytest
import torch

from dream.indexes.bm25 import BM25Index
from dream.scorers.pretraining.curriculum import CopyCurriculum, neighbour_passages, plant, random_passages
from dream.scorers.prompt import Prompt
from dream.store.permutation import permute
from dream.store.store import SCORER
from dream.utils.errors import ConfigError

PASSAGE = 24
PASSAGES, STEPS = 3, 60


@pytest.fixture(scope="module")
def index(store):
    return BM25Index.open_or_build(store)


def curriculum(store, index, tokenizer, batch_size=16, span_tokens=(4, 6), multi_passage_fraction=0.0, **shares):
    shares = {"verbatim": 0.0, "neighbour": 0.0, "random": 0.0, "null": 0.0} | shares
    prompt = Prompt(["{bos}", "{passage}", "{sep}", "{context}"], tokenizer)
    return CopyCurriculum(
        store, index, prompt, PASSAGE, shares, span_tokens, multi_passage_fraction, PASSAGES, STEPS, batch_size, seed=3
    )


def windows_of(store, position, count):
    return permute(3, np.arange(position, position + count), len(store.windows))


def test_every_sequence_ends_with_its_window(store, index, tokenizer):
    mixed = curriculum(store, index, tokenizer, verbatim=0.25, neighbour=0.25, random=0.25, null=0.25)
    ids_BT = mixed.batch(32).numpy()
    assert ids_BT.shape == (16, 1 + PASSAGE + 1 + 12 + 8)  # bos, passage, sep, context, target
    assert (ids_BT[:, 0] == tokenizer.bos_token_id).all()
    assert ((ids_BT == tokenizer.sep_token_id).sum(1) == 1).all()
    for ids, window in zip(ids_BT, windows_of(store, 32, 16), strict=True):
        tokens = np.concatenate(store.window_tokens(window, SCORER))
        np.testing.assert_array_equal(ids[-len(tokens) :], tokens)


def test_a_sequence_depends_only_on_its_position(store, index, tokenizer):
    shares = {"verbatim": 0.4, "neighbour": 0.3, "random": 0.2, "null": 0.1}
    whole = curriculum(store, index, tokenizer, batch_size=8, **shares).batch(8)
    halves = curriculum(store, index, tokenizer, batch_size=4, **shares)
    halves.start = 8
    stream = iter(halves)
    torch.testing.assert_close(torch.cat([next(stream), next(stream)]), whole)


def test_verbatim_passages_hold_a_span_of_the_window_and_random_ones_do_not(store, index, tokenizer):
    def copies(ids):
        passage, window = ids[1 : PASSAGE + 1].tolist(), ids[-20:].tolist()
        spans = {tuple(window[at : at + 4]) for at in range(len(window) - 3)}
        return any(tuple(passage[at : at + 4]) in spans for at in range(len(passage) - 3))

    verbatim = curriculum(store, index, tokenizer, verbatim=1.0).batch(0).numpy()
    random = curriculum(store, index, tokenizer, random=1.0).batch(0).numpy()
    assert np.mean([copies(ids) for ids in verbatim]) > 0.9
    assert np.mean([copies(ids) for ids in random]) < 0.5


def test_multi_passage_sequences_hold_the_span_once_or_the_neighbours_in_any_order(store, index, tokenizer):
    verbatim = curriculum(store, index, tokenizer, multi_passage_fraction=0.5, verbatim=1.0)
    ids_BT = verbatim.batch(16).numpy()
    assert ids_BT.shape == (16 * 46 // 96, 1 + 3 * (PASSAGE + 1) + 20)  # no more tokens than 16 sequences of 46
    assert ((ids_BT == tokenizer.sep_token_id).sum(1) == 3).all()
    for ids, window in zip(ids_BT, windows_of(store, 16, len(ids_BT)), strict=True):
        tokens = np.concatenate(store.window_tokens(window, SCORER))
        np.testing.assert_array_equal(ids[-len(tokens) :], tokens)

    neighbours = curriculum(store, index, tokenizer, multi_passage_fraction=0.5, neighbour=1.0).batch(16).numpy()
    windows = windows_of(store, 16, len(neighbours))
    best = neighbour_passages(store, index, windows, 3, np.zeros(len(windows), dtype=np.int64))
    firsts = set()
    for ids, passages in zip(neighbours, best, strict=True):
        starts = [tuple(store.passage_tokens(passage, SCORER)[:8]) for passage in passages]
        there = [tuple(ids[1 + slot * (PASSAGE + 1) :][:8]) for slot in range(3)]
        if len(set(passages.tolist())) < 3:
            continue  # BM25 found too few: a random passage is repeated
        assert sorted(there) == sorted(starts)
        firsts.add(starts.index(there[0]))
    assert len(firsts) > 1


def test_every_second_step_at_the_end_is_multi_passage_also_after_a_resume(store, index, tokenizer):
    mixed = curriculum(store, index, tokenizer, multi_passage_fraction=0.1, random=1.0)
    widths = [mixed.batch(16 * step).shape[1] for step in range(STEPS)]
    assert [step for step, width in enumerate(widths) if width == 96] == [49, 51, 53, 55, 57, 59]
    mixed.start = 16 * 50
    assert [batch.shape[1] for batch, _ in zip(mixed, range(10), strict=False)] == widths[50:]


def test_plant_by_hand():
    passage, window = np.arange(10), np.arange(100, 108)
    # Lengths 3..5: draw 0.5 gives 4. Places in the window 0..4: draw 0.99 gives 4. In the passage 0..6: 0 gives 0.
    planted = plant(passage, window, (3, 5), np.array([0.5, 0.99, 0.0]))
    assert planted.tolist() == [104, 105, 106, 107, 4, 5, 6, 7, 8, 9]
    assert passage.tolist() == list(range(10))
    assert plant(passage[:2], window, (3, 5), np.array([0.9, 0.0, 0.9])).tolist() == [100, 101]


def test_passages_never_come_from_the_windows_document(store, index):
    windows = np.arange(len(store.windows))
    own = store.windows["document"]
    for draw in (0.0, 0.3, 1 - 2.0**-53):
        drawn = random_passages(store, windows, np.full(len(windows), draw))
        assert (store.passage_documents[drawn] != own).all()
        assert drawn.min() >= 0
        assert drawn.max() < len(store.passages)
    found = neighbour_passages(store, index, windows, 3, random_passages(store, windows, np.full(len(windows), 0.3)))
    assert (store.passage_documents[found] != own[:, None]).all()


@pytest.mark.parametrize(
    ("shares", "message"), [({"verbatim": 0.5}, "add up to 1"), ({"verbatim": 1.0, "other": 0.0}, "a share for each")]
)
def test_bad_shares(store, index, tokenizer, shares, message):
    with pytest.raises(ConfigError, match=message):
        curriculum(store, index, tokenizer, **shares)


@pytest.mark.parametrize("fraction", [-0.1, 0.6])
def test_a_bad_multi_passage_fraction_is_refused(store, index, tokenizer, fraction):
    with pytest.raises(ConfigError, match=f"scorer.training.multi_passage_fraction={fraction}"):
        curriculum(store, index, tokenizer, multi_passage_fraction=fraction, random=1.0)
