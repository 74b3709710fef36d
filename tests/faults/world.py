"""A folder with a tiny labelled corpus, its caches and its runs: what is run there, disturbed, and compared."""

import json
import multiprocessing
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.child import Disturbance, run

from dream.utils.atomic_io import checksum

FORGOTTEN = (".*.tmp", "*.tmp", ".*.partial", "*.training")

SETTINGS = [f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]", "experiment=tiny"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.child"])


@dataclass
class World:
    """`root` holds data/ and logs/. No file names it but a run's config, so a copy is another world."""

    root: Path
    overrides: list[str] = field(default_factory=list)
    log: Path = None  # type: ignore[assignment]  # what the last run printed

    def __post_init__(self) -> None:
        self.log = self.log or self.root.with_name(f"{self.root.name}.log")

    @classmethod
    def new(cls, root: Path, *overrides: str) -> "World":
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        return cls(root, list(overrides))

    def arguments(self) -> list[str]:
        return [*SETTINGS, f"paths.data={self.root / 'data'}", f"paths.logs={self.root / 'logs'}", *self.overrides]

    def start(
        self,
        *more: str,
        script: str = "train",
        environment: dict[str, str] | None = None,
        plain: bool = False,
        **disturbance: Any,
    ) -> Any:
        """A running process; `join()` and `exitcode` as of multiprocessing.

        `plain`: without the arguments of the tiny run. `disturbance`: see Disturbance.
        """
        self.log.unlink(missing_ok=True)
        arguments = list(more) if plain or script == "search" else [*self.arguments(), *more]
        process = _context.Process(
            target=run, args=(script, arguments, self.log, Disturbance(**disturbance), environment)
        )
        process.start()
        return process

    def run(self, *more: str, **options: Any) -> int:
        """Run to the end; returns the exit code."""
        process = self.start(*more, **options)
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"a run hangs: {self.output()[-2000:]}")
        return process.exitcode

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, signum: int, step: int = 5) -> None:
        """Run until a signal in the middle of this step ends it."""
        target = "tests.faults.child.SignalAtStep"
        code = self.run(f"+callbacks.signal={{_target_: {target}, step: {step}, signum: {int(signum)}}}")
        if code != 128 + signum:
            raise RuntimeError(f"exit code {code} after signal {signum}: {self.output()[-3000:]}")

    def resume(self, *more: str) -> int:
        """Start the run again: from its last checkpoint, or from the beginning where it has none."""
        return self.run("ckpt=auto", *more)

    def latest(self) -> Path:
        return (self.root / "logs" / "latest").resolve()

    def result(self) -> dict[str, Any]:
        """Everything that a run ends with and that must not depend on what happened to it."""
        run = self.latest()
        summary = json.loads((run / "summary.json").read_text())
        snapshots = sorted((run / "index").glob("snapshot-*"))
        files = [
            run / "encoder" / "model.safetensors",
            *snapshots[-1].glob("shard-*"),
        ]
        return {
            "files": {file.name: file.read_bytes() for file in files},
            "caches": {str(file.relative_to(self.root)): checksum(file) for file in (self.root / "data").rglob("*")
                       if file.is_file() and "tfevents" not in file.name and file.parent.name != "loglik"},
            "summary": {name: value for name, value in summary.items()
                        if name.startswith(("val/", "trained/", "untrained/", "hybrid/", "bm25/", "steps", "windows"))},
        }  # fmt: skip

    def forgotten(self) -> list[str]:
        """Temporary files and directories that nobody works on."""
        return [str(path.relative_to(self.root)) for folder in ("data", "logs") for pattern in FORGOTTEN
                for path in (self.root / folder).rglob(pattern)]  # fmt: skip

    def phases(self) -> list[tuple[float, float, bool, str]]:
        """(from, to, whether it begins there, phase) of the last run, in seconds from its start."""
        lines = [line.split(" ", 2) for line in self.log.with_suffix(".phases").read_text().splitlines()]
        ends = [float(seconds) for seconds, *_ in lines[1:]] + [float(lines[-1][0])]
        return [(float(seconds), end, begins == "1", phase)
                for (seconds, begins, phase), end in zip(lines, ends, strict=True)]  # fmt: skip

    def left_over(self, undisturbed: "World") -> list[str]:
        """What is in data/ and in the last run's folder, and not in those of the undisturbed run, or is temporary."""
        folders = ((world.root / "data", world.latest()) for world in (self, undisturbed))
        mine, theirs = (
            {str(path.relative_to(folder)) for folder in pair for path in folder.rglob("*")} for pair in folders
        )
        return [*self.forgotten(), *sorted(path for path in mine - theirs if not path.startswith("tensorboard"))]

    def remove(self, run: Path) -> None:
        shutil.rmtree(run)
        (self.root / "logs" / "latest").unlink(missing_ok=True)

    def copy(self, root: Path) -> "World":
        """The same corpus, caches and runs elsewhere."""
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.root, root, symlinks=True)
        return World(root, list(self.overrides))
