"""The order of windows. Run: pytest tests/store/test_permutation.py"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dream.store.permutation import permute, random_bits


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_is_a_permutation(n, seed, epoch):
    windows = permute(seed, np.arange(epoch * n, (epoch + 1) * n), n)
    assert np.array_equal(np.sort(windows), np.arange(n))


def test_a_position_does_not_depend_on_what_is_asked_with_it():
    whole = permute(7, np.arange(500), 123)
    assert np.array_equal(whole[300:310], permute(7, np.arange(300, 310), 123))
    assert np.array_equal(whole[::-1], permute(7, np.arange(500)[::-1], 123))


def test_orders_differ_between_epochs_and_seeds():
    first, second = permute(0, np.arange(1000), 1000), permute(0, np.arange(1000, 2000), 1000)
    other = permute(1, np.arange(1000), 1000)
    # Two unrelated permutations agree in one place on average; ten or more happens once in 10 million.
    for a, b in ((first, second), (first, other), (second, other), (first, np.arange(1000))):
        assert (a == b).sum() < 10


def test_neighbours_are_far_apart():
    """The mean distance of two random places of range(n) is n / 3."""
    windows = permute(3, np.arange(20_000), 20_000)
    assert np.abs(np.diff(windows)).mean() == pytest.approx(20_000 / 3, rel=0.05)


def test_random_bits_repeat_and_spread():
    draws = random_bits(5, np.arange(4096), 1)
    assert np.array_equal(draws[10:20], random_bits(5, np.arange(10, 20), 1))
    assert len(np.unique(draws)) == 4096
    ones = np.unpackbits(draws.view(np.uint8)).mean()
    assert ones == pytest.approx(0.5, abs=0.005)  # 262,144 fair coins: a standard deviation of 0.001
    assert not np.array_equal(draws, random_bits(5, np.arange(4096), 2))
    assert not np.array_equal(draws, random_bits(6, np.arange(4096), 1))
