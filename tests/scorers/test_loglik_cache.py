"""The cache of log-likelihoods on disk: bitwise the same values again, also after damage and killed processes.

Run: pytest tests/scorers/test_loglik_cache.py
"""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import time

import numpy as np
import pytest
import torch
from tests.random_models import SCORING
from tests.scorers.test_loglik import CANDIDATES, WINDOWS, save_model

from dream.scorers.hf import HFScorer
from dream.scorers.loglik_cache import LoglikCache
from dream.store.store import Store
from dream.utils.errors import ConfigError

PAIRS = np.array([7, 7, 2**31]), np.array([3, -1, 2**31 - 1])
NATS = np.array([-1.5, -0.1, -3e5], dtype=np.float32)


def opened(folder, scope="a", megabytes=10):
    cache = LoglikCache(folder, megabytes)
    cache.open(scope)
    return cache


def file_of(folder):
    (file,) = folder.glob("*.sqlite")
    return file


@pytest.fixture(scope="module")
def llama(tokenizer, tmp_path_factory):
    return save_model("llama", tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def own_store(store, tmp_path):
    """A copy of the store whose caches are in tmp_path."""
    return Store(shutil.copytree(store.path, tmp_path / "stores" / store.path.name))


def scorer_with(llama, store, cache_megabytes=10, **changes):
    scoring = SCORING | {"tokens_per_forward": 130} | changes
    scorer = HFScorer(
        corpus=None, name=llama, scoring=scoring, trust_remote_code=False, cache_megabytes=cache_megabytes
    )
    scorer.load(store)
    return scorer


def test_added_values_are_found_by_the_next_process(tmp_path):
    opened(tmp_path).add(*PAIRS, NATS)
    again = opened(tmp_path)
    np.testing.assert_array_equal(again.find(*PAIRS), NATS)
    assert np.isnan(again.find(np.array([7, 8]), np.array([4, 3]))).all()
    again.add(np.array([7]), np.array([1]), NATS[:1])  # between two existing ones
    np.testing.assert_array_equal(again.find(*PAIRS), NATS)


def test_scopes_do_not_mix(tmp_path):
    opened(tmp_path, "a").add(*PAIRS, NATS)
    assert np.isnan(opened(tmp_path, "b").find(*PAIRS)).all()


def test_values_that_are_not_finite_are_not_added(tmp_path):
    cache = opened(tmp_path)
    cache.add(*PAIRS, np.array([np.nan, -np.inf, -1], dtype=np.float32))
    assert np.isnan(cache.find(*PAIRS)).tolist() == [True, True, False]


def test_the_cache_changes_results_only_by_rounding_and_returns_what_was_scored(llama, own_store, tmp_path):
    """Half of the pairs are cached, so the others are scored in other packs than without a cache."""
    without = scorer_with(llama, own_store, cache_megabytes=0).loglik(own_store, WINDOWS, CANDIDATES)
    assert not (tmp_path / "loglik").exists()
    scorer = scorer_with(llama, own_store)
    scorer.loglik(own_store, WINDOWS, CANDIDATES[:, ::2])
    half_cached = scorer.loglik(own_store, WINDOWS, CANDIDATES)
    assert (scorer.pairs_asked, scorer.pairs_scored) == (6 + 12, 12)
    torch.testing.assert_close(half_cached, without, rtol=1e-6, atol=0)
    again = scorer_with(llama, own_store)
    assert torch.equal(again.loglik(own_store, WINDOWS, CANDIDATES), half_cached)
    assert (again.pairs_scored, again.forwards) == (0, 0)
    assert file_of(tmp_path / "loglik").name == "loglik-1.sqlite"


def test_log_likelihoods_depend_on_the_batch_only_by_rounding(llama, store):
    windows = torch.arange(16)
    candidates = torch.arange(16 * 6).view(16, 6)
    single, together = (
        scorer_with(llama, store, 0, tokens_per_forward=tokens).loglik(store, windows, candidates)
        for tokens in (1, 4096)
    )
    torch.testing.assert_close(single, together, rtol=1e-6, atol=0)


def test_another_model_or_prompt_has_its_own_log_likelihoods(llama, own_store):
    scorer_with(llama, own_store).loglik(own_store, WINDOWS, CANDIDATES)
    other = scorer_with(llama, own_store, max_passage_tokens=5)
    other.loglik(own_store, WINDOWS, CANDIDATES)
    assert other.pairs_scored == CANDIDATES.numel()


def damage_value(file):
    """Flip one bit of a stored log-likelihood, as a failing disk does."""
    content = bytearray(file.read_bytes())
    at = content.find(NATS[:1].tobytes())
    assert at > 0
    content[at] ^= 1
    file.write_bytes(content)


def cut_short(file):
    file.write_bytes(file.read_bytes()[:5000])


def overwrite_start(file):
    file.write_bytes(b"x" * 200 + file.read_bytes()[200:])


@pytest.mark.parametrize("damage", [damage_value, cut_short, overwrite_start])
def test_damage_is_reported_and_a_new_file_replaces_the_damaged_one(tmp_path, capsys, damage):
    cache = opened(tmp_path)
    cache.add(*PAIRS, NATS)
    cache.close()
    file = file_of(tmp_path)
    damage(file)
    cache = opened(tmp_path)
    assert np.isnan(cache.find(*PAIRS)).all()
    assert f"{file}: damaged" in capsys.readouterr().out
    cache.add(*PAIRS, NATS)
    np.testing.assert_array_equal(opened(tmp_path).find(*PAIRS), NATS)
    assert file_of(tmp_path) != file


def test_damage_of_an_open_file_is_noticed(tmp_path, capsys):
    cache = opened(tmp_path)
    cache.add(*PAIRS, NATS)
    cache.connection.execute("UPDATE windows SET nats = zeroblob(8) WHERE window = 7")
    assert np.isnan(cache.find(*PAIRS)).all()
    assert "damaged" in capsys.readouterr().out


def test_full_caches_make_room_then_stop(tmp_path, capsys):
    """1 MB: another scope's rows are deleted first; the scope's own rows stay."""
    many = 6000
    windows, passages = np.repeat(np.arange(many), 20), np.tile(np.arange(20), many)
    nats = np.random.default_rng(0).normal(size=len(windows)).astype(np.float32)
    first = opened(tmp_path, "first", 1)
    first.add(windows, passages, nats)
    second = opened(tmp_path, "second", 1)
    second.add(windows, passages, nats)
    assert np.isnan(opened(tmp_path, "first", 1).find(windows[:9], passages[:9])).all()
    second.add(windows + many, passages, nats)
    second.add(windows + 2 * many, passages, nats)
    assert capsys.readouterr().out.count("raise scorer.cache_megabytes") == 1
    np.testing.assert_array_equal(second.find(windows[:9], passages[:9]), nats[:9])


def test_a_scope_that_is_deleted_while_in_use_mixes_with_no_other(tmp_path):
    """One process deletes a scope that another still adds to; a third starts and finds nothing of it."""
    in_use, other = opened(tmp_path, "second"), opened(tmp_path, "first")
    other.most_bytes = 0  # as if the file were full
    other.add(*PAIRS, NATS)
    in_use.add(*PAIRS, NATS)
    assert np.isnan(opened(tmp_path, "third").find(*PAIRS)).all()
    np.testing.assert_array_equal(opened(tmp_path, "second").find(*PAIRS), NATS)


def test_a_cache_that_cannot_be_written_does_not_stop_the_scorer(llama, own_store, tmp_path, capsys):
    (tmp_path / "loglik").write_text("a file, not a folder")
    scorer = scorer_with(llama, own_store)
    expected = scorer_with(llama, own_store, cache_megabytes=0).loglik(own_store, WINDOWS, CANDIDATES)
    assert torch.equal(scorer.loglik(own_store, WINDOWS, CANDIDATES), expected)
    assert torch.equal(scorer.loglik(own_store, WINDOWS, CANDIDATES), expected)
    assert capsys.readouterr().out.count("log-likelihoods are not cached") == 1


def test_a_size_of_0_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="scorer.cache_megabytes=0"):
        LoglikCache(tmp_path, 0)


def _write_until_killed(folder, seed):
    cache, draw = opened(folder), np.random.default_rng(seed)
    while True:
        windows = draw.integers(0, 50, 20)
        passages = draw.integers(0, 50, 20)
        cache.add(windows, passages, (windows * 1000 + passages).astype(np.float32))


@pytest.mark.slow
def test_writers_that_are_killed_leave_an_intact_cache(tmp_path):
    start = multiprocessing.get_context("spawn")
    for attempt in range(3):
        writers = [start.Process(target=_write_until_killed, args=(tmp_path, 10 * attempt + n)) for n in range(2)]
        for writer in writers:
            writer.start()
        known = 0
        deadline = time.monotonic() + 60
        while known < 100 * (attempt + 1) and time.monotonic() < deadline:
            time.sleep(0.02)
            if list(tmp_path.glob("*.sqlite")):
                known = len(_all_pairs(tmp_path)[0])
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    windows, passages, nats = _all_pairs(tmp_path)
    assert len(windows) >= 300
    np.testing.assert_array_equal(nats, windows * 1000 + passages)
    assert file_of(tmp_path).name == "loglik-1.sqlite"


def _all_pairs(folder):
    cache = opened(folder)
    rows = [(np.full(len(ids), window), ids, nats) for window, ids, nats in cache._rows(None)]
    cache.close()
    return [np.concatenate(column) for column in zip(*rows, strict=True)] if rows else [np.empty(0)] * 3


def test_other_files_in_the_folder_are_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    opened(tmp_path).add(*PAIRS, NATS)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sqlite3.connect(file_of(tmp_path)).execute("SELECT count(*) FROM windows").fetchone() == (2,)
