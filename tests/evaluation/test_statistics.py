"""Intervals and tests against hand-derived numbers. Run: pytest tests/evaluation/test_statistics.py"""

import numpy as np
import pytest

from dream.evaluation import statistics
from dream.evaluation.statistics import Sampling, compare, intervals, randomisation_p

SAMPLING = Sampling(resamples=10_000, confidence=0.95, seed=0)


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    """400 values of standard deviation 1: the standard error of the mean is 1/20, the interval ±1.96 times that."""
    values_Q = np.random.default_rng(1).standard_normal(400)
    low, high = intervals([values_Q[None]], SAMPLING)[0]
    reach = 1.96 * values_Q.std() / 20
    assert (low, high) == pytest.approx((values_Q.mean() - reach, values_Q.mean() + reach), abs=0.005)


def test_seeds_widen_the_interval_as_far_as_they_differ():
    """All queries have the same value; one seed has 0, the other 1. The mean of two drawn seeds is 0, 1/2 or 1."""
    assert intervals([np.array([[0.5] * 50]), np.array([[0.0] * 50, [1.0] * 50])], SAMPLING) == [
        pytest.approx((0.5, 0.5)),
        pytest.approx((0.0, 1.0)),
    ]


def test_randomisation_by_counting():
    """Differences 1, 1, 1: 2 of the 8 sign patterns are as extreme. Differences 1, 1, -2 (mean 0): all patterns are."""
    better, level = randomisation_p(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0]]), SAMPLING)
    assert (better, level) == (pytest.approx(2 / 8, abs=0.02), 1)
    assert randomisation_p(np.stack([np.zeros(40), np.ones(40)]), SAMPLING).tolist() == [1, 1 / 10_001]


def test_randomisation_agrees_with_all_patterns():
    """Twelve queries have 4,096 sign patterns: p is computed from all of them."""
    difference_Q = np.random.default_rng(3).standard_normal(12) + 0.4
    patterns = 1 - 2 * ((np.arange(4096)[:, None] >> np.arange(12)) & 1)
    exact = (np.abs(patterns @ difference_Q) >= abs(difference_Q.sum()) - 1e-9).mean()
    assert randomisation_p(difference_Q[None], SAMPLING)[0] == pytest.approx(exact, abs=0.015)


def test_a_paired_difference_is_surer_than_its_parts():
    """A system that is always better by exactly 0.1, on queries that differ much."""
    baseline_Q = np.random.default_rng(4).random(60)
    better = compare([baseline_Q[None] + 0.1, baseline_Q[None]], baseline_Q[None], SAMPLING)
    assert better[0].interval == pytest.approx((0.1, 0.1))
    assert (better[0].mean, better[0].wins, better[0].losses) == (pytest.approx(0.1), 60, 0)
    assert better[0].p == 1 / 10_001
    assert (better[1].mean, better[1].p, better[1].wins, better[1].losses) == (0, 1, 0, 0)


def test_seeds_are_paired_with_the_baselines_seeds():
    baseline_SQ = np.array([[0.0, 0.2], [0.4, 0.6]])
    assert compare([baseline_SQ + 0.1], baseline_SQ, SAMPLING)[0].interval == pytest.approx((0.1, 0.1))
    lone = compare([baseline_SQ], np.array([[0.2, 0.4]]), SAMPLING)[0]
    assert lone.mean == pytest.approx(0)
    assert lone.interval == pytest.approx((-0.2, 0.2))


def test_swapping_system_and_baseline_only_flips_the_sign():
    """The seeds of the one that has several are resampled, whichever of the two it is."""
    draw = np.random.default_rng(6)
    run_SQ, bm25_SQ = draw.random((3, 40)) + np.array([[0.0], [0.1], [0.4]]), draw.random((1, 40))
    ahead, behind = compare([run_SQ], bm25_SQ, SAMPLING)[0], compare([bm25_SQ], run_SQ, SAMPLING)[0]
    low, high = ahead.interval
    assert behind.interval == pytest.approx((-high, -low))
    assert (behind.mean, behind.p) == (pytest.approx(-ahead.mean), ahead.p)
    assert (behind.wins, behind.losses) == (ahead.losses, ahead.wins)


def test_the_same_seed_draws_the_same_whatever_the_chunks(monkeypatch):
    values = [np.random.default_rng(5).random((2, 30))]
    whole = intervals(values, SAMPLING), randomisation_p(values[0] - 0.5, SAMPLING).tolist()
    assert (intervals(values, SAMPLING), randomisation_p(values[0] - 0.5, SAMPLING).tolist()) == whole
    monkeypatch.setattr(statistics, "CHUNK_CELLS", 3_000)
    low, high = intervals(values, SAMPLING)[0]
    assert (low, high) == pytest.approx(whole[0][0], abs=0.01)
