"""The stream of windows: every window once an epoch, ranks apart, workers without influence.
Run: pytest tests/data/test_window_datamodule.py"""

import itertools
import json

import numpy as np
import pytest
import torch

from dream.data.window_datamodule import WindowDataModule, WindowStream
from dream.store.questions import TEXTS, save_tokens
from dream.store.store import ENCODER, Store
from dream.utils.errors import ConfigError


def stream(
    store, batch_size=5, start=0, rank=0, world=1, limit=None, seed=0, document_start_fraction=0.0, scored=0,
) -> WindowStream:  # fmt: skip
    return WindowStream(store, seed, batch_size, 256, 8, document_start_fraction, limit, scored, start, rank, world)


def ids(batches) -> list[int]:
    return [window for batch in batches for window in batch.window_ids_B.tolist()]


def make_datamodule(corpus, tokenizer, tmp_path, **changes) -> WindowDataModule:
    settings = {
        "max_query_tokens": 256,
        "stores_dir": str(tmp_path),
        "batch_size": 4,
        "workers": 0,
        "limit_windows": None,
        "questions": None,
        "scored_windows": 2,
        "document_start_fraction": 0.5,
        "continuation_tokens": 16,
        "seed": 0,
        "passage_tokens": 24,
        "context_tokens": 12,
        "min_context_tokens": 6,
        "target_tokens": 8,
        "context": "span",
        "target": "continuation",
    }
    return WindowDataModule(corpus, tokenizer, tokenizer, **(settings | changes))


@pytest.fixture
def asked(store, tokenizer, tmp_path):
    """The store with questions about its first six passages, all of which are trained on."""
    texts = [f"question {number}" for number in range(6)]
    rows = [json.dumps({"passage": passage, "question": text}) + "\n" for passage, text in enumerate(texts)]
    (tmp_path / TEXTS).write_text("".join(rows))
    save_tokens(tmp_path, range(6), texts, (tokenizer, tokenizer))
    return Store(store.path, target="context", questions=tmp_path)


def test_scored_windows_are_questions_in_turn(asked, store):
    pieces, count = len(store.windows), len(asked.questions)
    batches = list(itertools.islice(stream(asked, batch_size=4, scored=1), 2 * count))
    scored = [batch.window_ids_B[0].item() for batch in batches]
    assert sorted(scored[:count]) == sorted(scored[count:]) == list(range(pieces, pieces + count))
    assert scored[:count] != scored[count:]
    plain = list(itertools.islice(stream(store, batch_size=4), 2 * count))
    assert [batch.window_ids_B[1:].tolist() for batch in batches] == [b.window_ids_B[1:].tolist() for b in plain]
    later = stream(asked, batch_size=4, scored=1, start=8)
    assert ids(itertools.islice(later, 4)) == ids(batches[2:6])


@pytest.mark.parametrize("settings", [{"start": 6}, {"limit": 3}, {"limit": 10}])
def test_questions_keep_their_slots_whatever_the_start_and_the_limit(asked, store, settings):
    """Also if neither is a multiple of the batch: e.g. a run that starts from a checkpoint with other batches."""
    batches = list(itertools.islice(stream(asked, batch_size=4, scored=2, **settings), 6))
    windows = torch.stack([batch.window_ids_B for batch in batches])
    assert (windows[:, :2] >= len(store.windows)).all()
    assert (windows[:, 2:] < len(store.windows)).all()
    if limit := settings.get("limit"):
        first = -(-limit // 4)
        assert torch.equal(windows[:first, :2], windows[first : 2 * first, :2])


def test_an_epoch_has_every_window_once_and_the_next_another_order(store):
    n = len(store.windows)
    seen = ids(itertools.islice(stream(store, batch_size=1), 2 * n))
    assert sorted(seen[:n]) == list(range(n)) == sorted(seen[n:])
    assert seen[:n] != seen[n:]


@pytest.mark.parametrize("kind", ["store", "asked"])
def test_ranks_share_each_batch_without_overlap(request, kind):
    """Two ranks take, together, what one takes; each has half of the scored windows, which come first; same count."""
    store, settings = request.getfixturevalue(kind), {"batch_size": 10, "scored": 4, "start": 20}
    whole = list(itertools.islice(stream(store, **settings), 4))
    halves = [list(itertools.islice(stream(store, rank=rank, world=2, **settings), 4)) for rank in range(2)]
    for number, batch in enumerate(whole):
        first, second = halves[0][number], halves[1][number]
        for name in ("window_ids_B", "positions_B"):
            one, other, both = (getattr(part, name).tolist() for part in (first, second, batch))
            assert [*one[:2], *other[:2]] == both[:4]
            assert [*one[2:], *other[2:]] == both[4:]
        assert first.consumed == second.consumed == batch.consumed
        assert batch.positions_B.tolist() == list(range(20 + 10 * number, 30 + 10 * number))
        assert batch.head(3).positions_B.tolist() == batch.positions_B[:3].tolist()


def test_starting_later_is_the_same_as_skipping(store):
    skipped = list(itertools.islice(stream(store), 6))[3:]
    assert ids(skipped) == ids(itertools.islice(stream(store, start=15), 3))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_order(corpus, tokenizer, tmp_path, workers):
    alone = make_datamodule(corpus, tokenizer, tmp_path).train_dataloader()
    several = make_datamodule(corpus, tokenizer, tmp_path, workers=workers).train_dataloader()
    assert ids(itertools.islice(alone, 7)) == ids(itertools.islice(several, 7))


def test_context_and_continuation_are_the_texts_of_the_window(store, tokenizer):
    batch = stream(store).batch(0)
    for b, window in enumerate(batch.window_ids_B.tolist()):
        context, target = store.window_text(window)
        for tokens, text in ((batch.context, context), (batch.continuation, target)):
            row_T = tokens.ids_BT[b][tokens.mask_BT[b]]
            assert "".join(tokenizer.decode(row_T).split()) == "".join(text.lower().split())
    assert torch.equal(batch.document_ids_B, torch.from_numpy(store.windows["document"][batch.window_ids_B.numpy()]))


def test_a_continuation_goes_on_after_the_target_and_ends_with_its_document(store):
    made = WindowStream(store, 0, len(store.windows), 256, 10_000, 0.0, None, 0, 0, 0, 1)
    batch = made.batch(0)
    for b, window in enumerate(batch.window_ids_B.tolist()):
        row_T = batch.continuation.ids_BT[b][batch.continuation.mask_BT[b]].numpy()
        middle = store.windows["tokens"][window, ENCODER, 1]
        own = store.passages["tokens"][store.passage_documents == batch.document_ids_B[b].item(), ENCODER]
        np.testing.assert_array_equal(row_T, store.tokens[ENCODER][middle : own.max()][:256])


def test_the_lead_share_opens_documents_and_every_window_still_comes(store):
    """At 1/4, one window of four is a document's first; each of the two orders is complete before it repeats."""
    leads = set(store.document_start_windows.tolist())
    assert sorted(store.windows["document"][sorted(leads)].tolist()) == sorted(set(store.windows["document"].tolist()))
    made = stream(store, document_start_fraction=0.25)
    windows = made.windows_at(np.arange(8 * len(store.windows)))
    assert set(windows[3::4].tolist()) <= leads
    np.testing.assert_array_equal(np.sort(windows[3::4][: len(leads)]), sorted(leads))
    rest = np.delete(windows, np.s_[3::4])[: len(store.windows)]
    np.testing.assert_array_equal(np.sort(rest), np.arange(len(store.windows)))


def test_beginnings_are_half_of_the_windows_but_fewer_if_documents_are_long(corpus, tokenizer, tmp_path, caplog):
    made = make_datamodule(corpus, tokenizer, tmp_path, document_start_fraction="auto")
    starts = len(made.store.document_start_windows)
    assert len(made.store.windows) > 5 * starts
    made.store.windows = made.store.windows[: 5 * starts]
    assert made.start_fraction == made.stream(0, 1).document_start_fraction == 0.5
    made.store.windows = np.concatenate([made.store.windows] * 4)
    assert "instead of half" not in caplog.text
    assert made.start_fraction == made.stream(0, 1).document_start_fraction == 2.5 / 20
    assert "12% of the windows are beginnings of documents instead of half" in caplog.text


def test_a_limit_repeats_the_first_windows(store):
    assert set(ids(itertools.islice(stream(store, limit=7), 10))) == set(ids([stream(store, batch_size=7).batch(0)]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 1),
        ("workers", -1),
        ("min_context_tokens", 13),
        ("target_tokens", 0),
        ("limit_windows", 0),
        ("document_start_fraction", 1.1),
        ("document_start_fraction", "half"),
        ("continuation_tokens", 0),
    ],
)
def test_impossible_values_are_refused_by_name(corpus, tokenizer, tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"data\.{key}={value}"):
        make_datamodule(corpus, tokenizer, tmp_path, **{key: value})
