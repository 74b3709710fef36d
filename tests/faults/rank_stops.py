"""Signals to a random rank of a run on two processes, at random moments; then ckpt=auto: is the rest bitwise the same?

Run: python -m tests.faults.rank_stops --stops 20 --seed 0 --log rank_stops.log
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from dream.utils import ranks

SETTINGS = [f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]", "experiment=tiny"]

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "candidates.scored_windows=4")
MOST_SECONDS = 60  # from the signal to the end of all processes
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL)


@dataclass
class RankWorld:
    """A folder with the caches and runs of a tiny run on two processes."""

    root: Path
    overrides: tuple[str, ...] = TWO
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.root.with_suffix(".log")

    def start(self, *more: str, launcher: tuple[str, ...] = (), log: str = "log") -> subprocess.Popen:
        """Start a run in a process group of its own, its output next to the folder, with the suffix `log`."""
        folders = [f"paths.data={self.root / 'data'}", f"paths.logs={self.root / 'logs'}"]
        command = [sys.executable, *launcher, "-m", "dream.commands.train", *SETTINGS, *folders, *self.overrides, *more]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | self.environment
        with self.root.with_suffix(f".{log}").open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment,
                                    start_new_session=True)  # fmt: skip

    def run(self, *more: str, launcher: tuple[str, ...] = (), seconds: float = 120) -> int:
        """Run to the end, and return the exit code. No process of the run is left."""
        return finish(self.start(*more, launcher=launcher), seconds)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def runs(self) -> list[Path]:
        return sorted((self.root / "logs" / "tiny").iterdir())

    def result(self) -> dict[str, Any]:
        """Everything that a run ends with and that must not depend on what happened to it."""
        run = (self.root / "logs" / "latest").resolve()
        summary = json.loads((run / "summary.json").read_text())
        snapshot = sorted((run / "index").glob("snapshot-*"))[-1]
        files = [run / "encoder" / "model.safetensors", *sorted(snapshot.glob("shard-*"))]
        names = ("val/", "trained/", "untrained/", "hybrid/", "bm25/", "steps", "windows", "train/loss")
        scores = {name: value for name, value in summary.items() if name.startswith(names)}
        return {"files": {file.name: file.read_bytes() for file in files}, "summary": scores}


class SignalAtRank(L.Callback):
    """Sends one rank a signal in the middle of a step."""

    def __init__(self, rank: int, step: int, signum: int) -> None:
        self.rank, self.step, self.signum = rank, step, signum

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if ranks.rank() == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


def finish(process: subprocess.Popen, seconds: float) -> int:
    """Wait for a run. Afterwards, no process of its group is left."""
    try:
        return process.wait(seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_alone(process: subprocess.Popen, seconds: float) -> bool:
    """Whether all processes of an ended run's group end within this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def rank_pids(process: subprocess.Popen) -> list[int]:
    """The processes of a run: rank 0, and rank 1 if it has been started."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        children = []
    return [process.pid, *map(int, children)]


def stop(world: RankWorld, rank: int, signum: int, delay: float) -> tuple[int, str]:
    """(exit code, what is wrong) of a run whose rank gets a signal after this time."""
    process = world.start()
    time.sleep(delay)
    pids = rank_pids(process)
    target = pids[min(rank, len(pids) - 1)]
    with suppress(ProcessLookupError):
        os.kill(target, signum)
    try:
        code = process.wait(MOST_SECONDS)
    except subprocess.TimeoutExpired:
        finish(process, 0.1)
        return -1, "hangs"
    if not is_alone(process, 25):
        finish(process, 0.1)
        return code, "leaves processes"
    expected = (0, 1, -signum) if signum == signal.SIGKILL else (0, 128 + signum, -signum, 1)
    return code, "" if code in expected else f"exit code {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepare", type=float, default=0.25, help="share of the runs that start without caches")
    parser.add_argument("--log", type=Path, default=Path("rank_stops.log"))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, options.log.open("w") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        world = RankWorld(Path(folder) / "world")
        world.root.mkdir()
        began = time.monotonic()
        assert world.run() == 0, world.output()[-3000:]
        longest = time.monotonic() - began
        expected = world.result()
        good = 0
        for _ in range(options.stops):
            shutil.rmtree(world.root / "logs")
            prepares = draw.random() < options.prepare
            if prepares:
                shutil.rmtree(world.root / "data")
            rank, signum, delay = draw.randrange(2), draw.choice(SIGNALS), draw.uniform(4, longest)
            code, wrong = stop(world, rank, signum, delay)
            output = world.output()
            again = world.run("ckpt=auto")
            same = again == 0 and world.result() == expected
            good += same and not wrong
            last = [line for line in output.splitlines() if line.strip()][-1:]
            moment = f"after {delay:.1f} s{' (preparing)' * prepares}"
            say(f"{signal.Signals(signum).name} to rank {rank} {moment}: exit code {code}, {wrong or 'ends well'}, "
                f"{'bitwise equal' if same else 'DIFFERS'}; {last}")  # fmt: skip
            if wrong or not same or "Traceback" in output:
                say(f"--- stopped:\n{output[-3000:]}\n--- resumed:\n{world.output()[-2000:] if not same else ''}")
        say(f"{good} of {options.stops} ended well and resumed bitwise equal")


if __name__ == "__main__":
    main()
