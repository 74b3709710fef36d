"""SIGTERM and SIGINT at every step, with 0 and 2 loader workers, then ckpt=last: is the rest bitwise the same?

Run: python -m tests.faults.stops --log stops.log
"""

import argparse
import shutil
import signal
import tempfile
from pathlib import Path

from tests.faults.kills import Undisturbed

STEPS = range(10)  # of the tiny run, which refreshes after 4 and 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 2))
    parser.add_argument("--log", type=Path, default=Path("stops.log"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, options.log.open("w") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        undisturbed = Undisturbed.run(Path(folder) / "undisturbed")
        cases = equal = 0
        for workers in options.workers:
            for signum in (signal.SIGTERM, signal.SIGINT):
                for step in options.steps:
                    world = undisturbed.world.copy(Path(folder) / "world")
                    shutil.rmtree(world.root / "logs")
                    world.overrides.append(f"data.workers={workers}")
                    world.stop(signum, step)
                    code = world.run("ckpt=last")
                    same = code == 0 and world.result() == undisturbed.result and not world.forgotten()
                    cases, equal = cases + 1, equal + same
                    verdict = "bitwise equal" if same else f"DIFFERS\n{world.output()[-3000:]}"
                    say(f"{workers} workers, {signum.name} in step {step}: {verdict}")
        say(f"{equal} of {cases} bitwise equal")


if __name__ == "__main__":
    main()
