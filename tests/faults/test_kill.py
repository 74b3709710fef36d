"""Some kills at random moments; a hundred: python -m tests.faults.kills. Run: pytest tests/faults/test_kill.py"""

import random

import pytest
from tests.faults.kills import kill_and_go_on


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_ends_as_if_it_had_not_been(undisturbed, tmp_path, seed):
    assert list(kill_and_go_on(undisturbed, tmp_path / "world", random.Random(seed), most=1))
