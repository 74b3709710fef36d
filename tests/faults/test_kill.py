"""kill -9 at random moments of preparing, pretraining, training, refreshing, saving and evaluating; then go on.

Run: FAULT_KILLS=100 pytest tests/faults/test_kill.py -rP
"""

import os
import random

import pytest
from tests.faults.world import World, kill_somewhere

KILLS = int(os.environ.get("FAULT_KILLS", 3))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_as_if_it_had_not_been(measured, reference_result, tmp_path, number):
    _, seconds, writes = measured
    world = World.new(tmp_path / "world")
    moment = kill_somewhere(world, random.Random(number), seconds, writes)
    stage = last_words(world)
    code = world.go_on()
    assert code == 0, f"killed at {moment}: {world.output()[-3000:]}"
    assert world.result() == reference_result, f"killed at {moment}"
    assert not world.forgotten(), f"killed at {moment}"
    print(f"kill {number}: at {moment}, after {stage!r}: resumed, bitwise equal")


def last_words(world: World) -> str:
    lines = [line for line in world.output().splitlines() if line.strip()]
    return lines[-1].strip()[:70] if lines else "nothing"
