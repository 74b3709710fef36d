"""The mixture of candidate sources. Run: pytest tests/candidates/test_mixture.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from dream.candidates.bm25 import BM25Candidates
from dream.candidates.exclusion import excluded
from dream.candidates.index import IndexCandidates
from dream.candidates.mixture import CandidateMixture, quotas, take
from dream.candidates.random import RandomCandidates
from dream.utils.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
SCHEDULE = {"a": {"start": 0.75, "end": 0.25}, "b": {"start": 0.25, "end": 0.75}}


class Fixed:
    """Proposes the same ids to every window."""

    def __init__(self, ids):
        self.ids = ids

    def prepare(self, store, index):
        self.prepared = True

    def propose(self, windows, query_BD, k, step):
        return np.tile(np.asarray(self.ids, dtype=np.int64), (len(windows), 1))


class Forbidden(Fixed):
    def propose(self, *_):
        raise AssertionError("a source without a share must not be searched")


class NoSnapshot:
    current = None


def mixture(sources, schedule=SCHEDULE, k=4, exclude="document", near_copy=None, seed=7, steps=100):
    return CandidateMixture(sources, schedule, steps, k, None, False, exclude, near_copy, seed)


@pytest.fixture
def small(make_store):
    """Documents of 2 passages each: document d owns passages 2d and 2d + 1, and window d."""
    letters = "abcdefghijklmnopqrstuvwx"
    return make_store([" ".join(letters[i : i + 4]) for i in range(0, 24, 4)], passage=2, context=2, target=2)


def proposal(made, store, batch, step=0):
    made.prepare(store, NoSnapshot(), 10)
    return made.propose(batch, torch.zeros(len(batch), 2), step, len(batch)).tolist()


def test_quotas_by_largest_remainder():
    assert quotas({"a": 0.75, "b": 0.0, "c": 0.25}, 8) == {"a": 6, "b": 0, "c": 2}
    assert quotas({"a": 0.5, "b": 0.25, "c": 0.25}, 5) == {"a": 3, "b": 1, "c": 1}  # 2.5 beats 1.25
    assert quotas({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 8) == {"a": 3, "b": 3, "c": 2}  # equal: in their order
    assert quotas({"a": 0.7, "b": 0.2, "c": 0.1}, 10) == {"a": 7, "b": 2, "c": 1}  # 0.7 · 10 is below 7 in floats


def test_take():
    one = lambda ranked, wanted, k: take([np.array([ids]) for ids in ranked], wanted, k)[0].tolist()  # noqa: E731
    assert one([[1, 2, 3], [2, 4, 5]], [2, 2], 4) == [1, 2, 4, 5]
    assert one([[1, -1, -1], [2, 3, 4]], [2, 1], 4) == [1, 2, 3, 4]  # the first ran short
    assert one([[1, 2, 3, 4], [-1]], [1, 3], 3) == [1, 2, 3]  # the second ran short
    assert one([[1], [1]], [1, 1], 2) == [1, -1]


@pytest.mark.parametrize("groups_N", [None, np.array([0, 1, 1, 3, 0, 5, 6, 3, 8, 9])])
def test_take_is_the_same_as_one_id_after_another(groups_N):
    draw, k, wanted = np.random.default_rng(0), 5, [3, 1, 1]
    ranked = [draw.integers(-1, 10, size=(200, width)) for width in (6, 9, 2)]
    expected = []
    for row in zip(*ranked, strict=True):
        found, group = [], lambda passage: passage if groups_N is None else groups_N[passage]
        for ids, quota in [*zip(row, wanted, strict=True), *((ids, k) for ids in row)]:
            length = min(k, len(found) + quota)
            for passage in ids:
                if passage >= 0 and len(found) < length and group(passage) not in map(group, found):
                    found.append(passage)
        expected.append(found + [-1] * (k - len(found)))
    assert take(ranked, wanted, k, groups_N).tolist() == expected


def test_shares_move_linearly_and_stay():
    made = mixture({"a": Fixed([]), "b": Fixed([])}, steps=10)
    assert made.shares(0) == {"a": 0.75, "b": 0.25}
    assert made.shares(5) == pytest.approx({"a": 0.5, "b": 0.5})
    assert made.shares(10) == made.shares(99) == pytest.approx({"a": 0.25, "b": 0.75})


def test_shares_are_relative():
    schedule = {"a": {"start": 3, "end": 3}, "b": {"start": 1, "end": 1}}
    assert mixture({"a": Fixed([]), "b": Fixed([])}, schedule).shares(0) == {"a": 0.75, "b": 0.25}


def test_takes_each_share_best_first_without_the_own_document(small, batch_of):
    """Window 1 owns passages 2 and 3. Source a gives three (4, 5, 6), b one: 8, because 4 is already taken."""
    made = mixture({"a": Fixed([2, 4, 5, 3, 6, 7]), "b": Fixed([4, 8, 9, -1])})
    assert proposal(made, small, batch_of(small, [1])) == [[4, 5, 6, 8]]
    assert made.propose(batch_of(small, [1]), torch.zeros(1, 2), 100, 1).tolist() == [[4, 8, 9, 5]]


class Recorded(Fixed):
    """Also remembers which windows asked it."""

    def propose(self, windows, query_BD, k, step):
        assert torch.equal(query_BD[:, 0], windows.positions_B.float())
        self.asked = windows.window_ids_B.tolist()
        return super().propose(windows, query_BD, k, step)


def test_windows_that_are_not_scored_ask_one_source(store, batch_of):
    """At step 0, three quarters of them ask source a. Scored windows ask both."""
    sources = {"a": Recorded([1, 2, 3, 4, 5, 6]), "b": Recorded([11, 12, 13, 14, 15, 16])}
    made = mixture(sources, exclude="overlap")
    made.prepare(store, NoSnapshot(), 10)
    far = [window for window in range(len(store.windows)) if store.windows["document"][window] > 20]
    windows = (far * 20)[:1000]
    batch = batch_of(store, windows, 5000)
    query_BD = batch.positions_B.float()[:, None].expand(-1, 2)
    rows = made.propose(batch, query_BD, 0, 10).tolist()
    assert all(row == [1, 2, 3, 11] for row in rows[:10])
    chosen = [
        [source for source, first in (("a", 1), ("b", 11)) if row == list(range(first, first + 4))] for row in rows[10:]
    ]
    assert all(len(sources) == 1 for sources in chosen)
    asked = {
        name: [window for window, [source] in zip(windows[10:], chosen, strict=True) if source == name]
        for name in sources
    }
    assert {name: source.asked for name, source in sources.items()} == {
        name: windows[:10] + asked[name] for name in sources
    }
    assert abs(len(asked["a"]) - 742.5) < 5 * (990 * 0.75 * 0.25) ** 0.5  # binomial: five standard deviations
    # A part of the step, as on another rank, gets the same candidates.
    part = batch.rows(torch.arange(500, 600))
    assert made.propose(part, query_BD[500:600], 0, 0).tolist() == rows[500:600]


def test_no_windows_have_no_candidates(small, batch_of):
    """As with candidates.scored_windows=0 and candidates.hard_negatives=false."""
    made = mixture({"a": Forbidden([]), "b": Forbidden([])})
    made.prepare(small, NoSnapshot(), 10)
    batch = batch_of(small, [1]).head(0)
    assert made.propose(batch, torch.zeros(0, 2), 0, 0).shape == (0, 4)


def test_near_copies_count_once(make_store, batch_of):
    """Documents 1 to 5 are the same but for the last of 30 words; only the first that is proposed is taken."""
    shared, draw = [f"w{n}" for n in range(29)], [" ".join(f"d{d}x{n}" for n in range(30)) for d in range(6)]
    texts = [draw[0], *(" ".join([*shared, f"end{n}"]) for n in range(5)), *draw[1:]]
    store = make_store(texts, context=2, target=2)
    sources = {"a": Fixed([3, 1, 2, 4, 5]), "b": Fixed([4, 7, 8])}
    kept = mixture(sources, near_copy=None)
    assert proposal(kept, store, batch_of(store, [0])) == [[3, 1, 2, 4]]
    once = mixture(sources, near_copy=0.8)
    window = int(store.document_start_windows[0])
    [row] = proposal(once, store, batch_of(store, [window]))
    assert row[:3] == [3, 7, 8]
    assert len(set(row)) == 4
    assert not {1, 2, 4, 5} & set(row)
    [everything] = proposal(mixture(sources, k=10, near_copy=0.8), store, batch_of(store, [window]))
    assert sorted(everything) == list(range(1, 11))  # nothing else is left


def test_fills_with_random_passages_never_with_excluded_ones(small, batch_of):
    made = mixture({"a": Fixed([2, 3, -1]), "b": Fixed([-1, 11])}, k=10)  # window 1 may use exactly 10 of 12 passages
    [row] = proposal(made, small, batch_of(small, [1]))
    assert row[0] == 11
    assert sorted(row) == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("entry", [{"b": {"start": 0, "end": 0}}, {}], ids=["share 0", "no entry"])
def test_a_source_without_a_share_is_not_searched(small, batch_of, entry):
    never = Forbidden([])
    made = mixture({"a": Fixed([4, 5, 6, 7]), "b": never}, {"a": {"start": 1, "end": 1}} | entry)
    assert proposal(made, small, batch_of(small, [0])) == [[4, 5, 6, 7]]
    assert not hasattr(never, "prepared")


def test_before_the_first_snapshot_the_index_proposes_nothing(small, batch_of):
    schedule = {"index": {"start": 1, "end": 1}}
    [row] = proposal(mixture({"index": IndexCandidates()}, schedule), small, batch_of(small, [0]))
    assert len(set(row)) == 4
    assert min(row) > 1


def test_the_index_is_asked_for_more():
    class Handle:
        current = "snapshot"

        def search(self, query_QD, k):
            return torch.zeros(2, k), torch.arange(2 * k).reshape(2, k)

    source = IndexCandidates()
    source.prepare(None, Handle())
    assert source.propose([0, 1], torch.zeros(2, 4), 5, 0).shape == (2, 20)  # 4 times as many


@pytest.mark.parametrize("exclude", ["document", "overlap"])
def test_candidates_are_distinct_allowed_and_repeatable(store, batch_of, exclude):
    """On a store of 80 documents. New objects at the same position propose the same candidates."""
    schedule = {"bm25": {"start": 0.5, "end": 0.5}, "random": {"start": 0.5, "end": 0.5}}

    def run(seed, consumed):
        sources = {"bm25": BM25Candidates(), "random": RandomCandidates(seed)}
        made = mixture(sources, schedule, k=8, exclude=exclude, seed=seed)
        made.prepare(store, NoSnapshot(), 10)
        batch = batch_of(store, list(range(0, len(store.windows), 5)), consumed)
        ids_BK = made.propose(batch, torch.zeros(len(batch), 2), 3, len(batch) // 2)
        assert ids_BK.dtype == torch.int64
        assert ids_BK.shape == (len(batch), 8)
        assert not excluded(ids_BK.numpy(), batch, store, exclude).any()
        assert all(len(set(row)) == 8 for row in ids_BK.tolist())
        return ids_BK.tolist()

    assert run(7, 1000) == run(7, 1000)
    assert run(7, 1000) != run(7, 2000)
    assert run(7, 1000) != run(8, 1000)


def test_random_candidates_cover_the_corpus(store, batch_of):
    source = RandomCandidates(0)
    source.prepare(store, None)
    batch = batch_of(store, list(range(50)))
    counts = np.bincount(source.propose(batch, torch.zeros(50, 2), 100, 0).ravel(), minlength=len(store.passages))
    mean = counts.sum() / len(counts)
    assert len(counts) == len(store.passages)
    assert abs(counts - mean).max() < 6 * mean**0.5  # Poisson: six standard deviations


def test_too_many_candidates_for_the_corpus(small):
    made = mixture({"a": Fixed([]), "b": Fixed([])}, k=11)
    with pytest.raises(ConfigError, match=r"candidates\.k=11: .*only 10 passages"):
        made.prepare(small, NoSnapshot(), 10)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"k": 1}, "candidates.k=1"),
        ({"exclude": "none"}, "candidates.exclude=none"),
        ({"near_copy": 0.5}, "candidates.near_copy=0.5"),
        ({"steps": -1}, "candidates.schedule_steps=-1"),
        ({"schedule": SCHEDULE | {"c": {"start": 1, "end": 1}}}, "candidates.schedule=['a', 'b', 'c']: choose from"),
        ({"schedule": SCHEDULE | {"b": {"start": -0.1, "end": 1}}}, "candidates.schedule.b.start=-0.1"),
        ({"schedule": {"a": {"start": 0, "end": 1}, "b": {"start": 0, "end": 1}}}, "candidates.schedule.*.start=0"),
    ],
)
def test_bad_values_name_their_key(change, key):
    with pytest.raises(ConfigError) as error:
        mixture({"a": Fixed([]), "b": Fixed([])}, **change)
    assert str(error.value).startswith(key)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "candidates").glob("*.yaml")))
def test_every_config_proposes(name, store, batch_of):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(f"candidates/{name}", ["+seed=1", "+trainer.max_steps=10"])
    made = instantiate(cfg.candidates)
    rows = proposal(made, store, batch_of(store, [0, 9]), step=5)
    assert [len(set(row)) for row in rows] == [8, 8]
