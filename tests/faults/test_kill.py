"""Some kills at random moments; a hundred: python -m tests.faults.kills. Run: pytest tests/faults/test_kill.py"""

import random

import pytest
from tests.faults.kills import kill_and_resume

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_ends_as_if_it_had_not_been(undisturbed, tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(5):  # a run can end before its moment comes, where the machine has become faster
        if list(kill_and_resume(undisturbed, tmp_path / "world", draw, most=1)):
            return
    pytest.fail("no run was killed")
