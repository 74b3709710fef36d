"""kill -9 at random moments of a small real run, then the same command again until the run ends; what came of each.

Run: python -m tests.faults.kills --kills 100 --seed 0 --log kills.log
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.child import STARTING
from tests.faults.world import World

MOST_KILLS = 3  # of one run, before it is left alone
SAME_COMMAND = "ckpt=auto"


@dataclass
class Undisturbed:
    """The run that every disturbed one is compared with, and what it took."""

    world: World
    result: dict[str, Any]
    phases: list[tuple[float, float, bool, str]]  # see World.phases
    writes: int

    @classmethod
    def run(cls, root: Path, *overrides: str) -> "Undisturbed":
        world = World.new(root, *overrides)
        world.run("--help")  # starts the server that the runs are forked from
        code = world.run(SAME_COMMAND)
        if code:
            raise RuntimeError(f"the undisturbed run failed: {world.output()[-3000:]}")
        return cls(world, world.result(), world.phases(), int(world.log.with_suffix(".writes").read_text()))

    @property
    def seconds(self) -> float:
        return self.phases[-1][1]


def kill_once(world: World, undisturbed: Undisturbed, draw: random.Random) -> tuple[str, str] | None:
    """Start the run, kill it somewhere: in some phase, all alike, or at any write or time.

    Returns (moment, phase), or None where it ended before that.
    """
    kind, seconds = draw.choice(["phase", "phase", "write", "time"]), 120.0
    disturbance: dict[str, Any] = {}
    if kind == "phase":
        begun = [(phase, end - start) for start, end, begins, phase in undisturbed.phases if begins]
        phase = draw.choice(sorted({phase for phase, _ in begun} - {STARTING}))
        longest = max(length for of, length in begun if of == phase)
        time = draw.randint(1, sum(of == phase for of, _ in begun))
        disturbance = {"phase": phase, "time": time, "delay": draw.uniform(1e-6, longest / 2), "signum": signal.SIGKILL}
        words = f"{disturbance['delay']:.3f} s after beginning {time} of {phase}"
    elif kind == "write":
        disturbance = {"kill_at_write": draw.randint(1, undisturbed.writes)}
        words = f"write {disturbance['kill_at_write']}"
    else:
        seconds = draw.uniform(0.02, undisturbed.seconds)
        words = f"{seconds:.2f} s"
    process = world.start(SAME_COMMAND, **disturbance)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode == 0:
        return None
    assert process.exitcode == -9, f"{words}: exit code {process.exitcode}\n{world.output()[-3000:]}"
    return words, world.phases()[-1][-1]


def kill_and_resume(undisturbed: Undisturbed, root: Path, draw: random.Random, most: int) -> Iterator[tuple[str, str]]:
    """Yield (moment, phase) of each kill of one run; then AssertionError unless it ended as the undisturbed one did."""
    world, reported = World.new(root, *undisturbed.world.overrides), []
    for _ in range(draw.randint(1, min(most, MOST_KILLS))):
        killed = kill_once(world, undisturbed, draw)
        if killed is None:
            break
        reported.append(killed)
    code = world.run(SAME_COMMAND)
    assert code == 0, f"{reported}: {world.output()[-3000:]}"
    assert "Traceback" not in world.output(), reported
    assert world.result() == undisturbed.result, f"{reported}: the result differs"
    assert not world.left_over(undisturbed.world), f"{reported}: {world.left_over(undisturbed.world)}"
    yield from reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("kills.log"))
    options = parser.parse_args()
    phases: Counter[str] = Counter()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, options.log.open("w") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        undisturbed = Undisturbed.run(Path(folder) / "undisturbed")
        say(f"undisturbed: {undisturbed.seconds:.1f} s, {undisturbed.writes} writes")
        draw, runs = random.Random(options.seed), 0
        while phases.total() < options.kills:
            runs += 1
            for moment, phase in kill_and_resume(
                undisturbed, Path(folder) / "world", draw, options.kills - phases.total()
            ):
                phases[phase] += 1
                say(f"kill {phases.total()}: run {runs}, {moment}, killed while {phase}: went on, ended bitwise equal")
        for phase, count in phases.most_common():
            say(f"  {count:4} {phase}")
        say(f"{phases.total()} kills of {runs} runs: all ended bitwise equal, nothing left over "
             f"({time.perf_counter() - began:.0f} s)")  # fmt: skip


if __name__ == "__main__":
    main()
