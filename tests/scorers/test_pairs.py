"""A pair has one value, whichever rank asks and whichever rank is faster. Run: pytest tests/scorers/test_pairs.py"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.processes import run_ranks

from dream.scorers.loglik_cache import LoglikCache
from dream.scorers.pairs import find_or_score
from dream.utils import ranks

PAIRS = [[[1, 2], [3, 4], [1, 2]], [[5, 6], [1, 2], [7, 8]]]  # of each rank; (1, 2) is asked three times


class Model:
    """A value depends on how many pairs are scored together, as by rounding in a real model."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.scored = seconds, []

    def __call__(self, windows_P: np.ndarray, passages_P: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        self.scored += list(zip(windows_P.tolist(), passages_P.tolist(), strict=True))
        return (-10 * windows_P - passages_P - 0.01 * len(windows_P)).astype(np.float32)


def opened(folder: Path) -> LoglikCache:
    cache = LoglikCache(folder, megabytes=1)
    cache.open("scope")
    return cache


def ask_twice(folder: Path, slow: int) -> tuple[list[float], list[float], list[tuple[int, int]]]:
    def open_cache() -> LoglikCache:
        assert ranks.is_first(), "only rank 0 uses the cache"
        return opened(folder)

    model = Model(0.3 if ranks.rank() == slow else 0.0)
    pairs_P2 = torch.tensor(PAIRS[ranks.rank()])
    first, again = (find_or_score(open_cache, model, pairs_P2, True).tolist() for _ in range(2))
    return first, again, model.scored


@pytest.mark.parametrize("slow", [0, 1])
def test_ranks_agree_on_the_value_of_a_pair(tmp_path, slow):
    (first, again, scored), (other, other_again, other_scored) = run_ranks(
        2, tmp_path / "job", ask_twice, tmp_path, slow
    )
    assert (scored, other_scored) == ([(1, 2), (3, 4)], [(5, 6), (7, 8)])
    assert first == again == pytest.approx([-12.02, -34.02, -12.02])
    assert other == other_again == pytest.approx([-56.02, -12.02, -78.02])


def test_a_pair_is_scored_once(tmp_path):
    model, pairs_P2 = Model(), torch.tensor(PAIRS[0])
    without = find_or_score(None, model, pairs_P2, on_all_ranks=False)
    assert model.scored == [(1, 2), (3, 4)]
    cache = opened(tmp_path)
    cache.add(np.array([3]), np.array([4]), np.array([-1.0]))
    found = find_or_score(lambda: cache, model, pairs_P2, on_all_ranks=False)
    assert without.tolist() == pytest.approx([-12.02, -34.02, -12.02])
    assert found.tolist() == pytest.approx([-12.01, -1.0, -12.01])
    assert len(find_or_score(None, model, pairs_P2[:0], on_all_ranks=False)) == 0
