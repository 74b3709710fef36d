"""A folder with a tiny labelled corpus, its caches and its runs: what is run there, disturbed, and compared."""

import json
import multiprocessing
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.child import Disturbance, run

FORGOTTEN = (".*.tmp", "*.tmp", ".*.partial", "*.training")

SETTINGS = [
    "corpus.packages=[omegaconf,hydra]", "corpus.stdlib=false", "corpus.heldout_fraction=0.3", "name=tiny",
    "scorer.tokenizer.vocabulary=400", "scorer.tokenizer.sample_megabytes=1",
    "scorer.architecture.hidden_size=32", "scorer.architecture.intermediate_size=48",
    "scorer.architecture.num_hidden_layers=1", "scorer.architecture.num_attention_heads=2",
    "scorer.architecture.num_key_value_heads=2", "scorer.training.max_steps=9", "scorer.training.batch_size=4",
    "scorer.training.span_tokens=[4,6]", "scorer.training.compile=false", "scorer.training.gain_windows=8",
    "scorer.training.checkpoint_every_n_steps=3", "scorer.scoring.compile=false",
    "scorer.scoring.max_passage_tokens=24",
    "encoder.random_width=16", "data.batch_size=8", "data.passage_tokens=24", "data.context_tokens=12",
    "data.min_context_tokens=6", "data.target_tokens=8",
]  # fmt: skip
TRAINING = [
    "candidates.k=4", "candidates.scored_windows=3", "trainer.max_steps=10", "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu", "callbacks.refresh.every_n_steps=4", "callbacks.refresh.batch_passages=64",
    "callbacks.last_checkpoint.every_n_train_steps=2", "callbacks.supervision.every_n_steps=5",
    "callbacks.supervision.projected=0",
    "callbacks.progress=null", "+trainer.enable_progress_bar=false",
]  # fmt: skip

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

    def arguments(self, script: str) -> list[str]:
        paths = [f"paths.data={self.root / 'data'}", f"paths.logs={self.root / 'logs'}"]
        return [*SETTINGS, *paths, *(TRAINING if script == "train" else []), *self.overrides]

    def start(
        self, *more: str, script: str = "train", environment: dict[str, str] | None = None, **disturbance: Any
    ) -> Any:
        """A running process; `join()` and `exitcode` as of multiprocessing. `disturbance`: see Disturbance."""
        self.log.unlink(missing_ok=True)
        arguments = [*self.arguments(script), *more] if script != "search" else list(more)
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

    def go_on(self, *more: str) -> int:
        """What a person does: ckpt=last, or from the beginning where no run has a checkpoint yet."""
        code = self.run("ckpt=last", *more)
        return self.run(*more) if code and "has a checkpoint yet" in self.output() else code

    def latest(self) -> Path:
        return (self.root / "logs" / "latest").resolve()

    def result(self) -> dict[str, Any]:
        """Everything that a run ends with and that must not depend on what happened to it."""
        run = self.latest()
        summary = json.loads((run / "summary.json").read_text())
        generations = sorted((run / "index").glob("generation-*"))
        files = [
            run / "encoder" / "model.safetensors",
            *generations[-1].glob("shard-*"),
            generations[-1] / "index.faiss",
        ]
        files += (self.root / "data" / "scorers").glob("*/model.safetensors")
        return {
            "files": {file.name: file.read_bytes() for file in files},
            "summary": {name: value for name, value in summary.items()
                        if name.startswith(("val/", "trained/", "untrained/", "hybrid/", "bm25/", "steps", "windows"))},
        }  # fmt: skip

    def forgotten(self) -> list[str]:
        """Temporary files and directories that nobody works on."""
        return [str(path.relative_to(self.root)) for folder in ("data", "logs") for pattern in FORGOTTEN
                for path in (self.root / folder).rglob(pattern)]  # fmt: skip

    def remove(self, run: Path) -> None:
        shutil.rmtree(run)
        (self.root / "logs" / "latest").unlink(missing_ok=True)

    def copy(self, root: Path) -> "World":
        """The same corpus, caches and runs elsewhere."""
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.root, root, symlinks=True)
        return World(root, list(self.overrides))


def kill_somewhere(world: World, draw: random.Random, seconds: float, writes: int) -> str:
    """Start a run and kill -9 it at a random moment, half of the time at a random write; returns the moment."""
    if draw.random() < 0.5:
        number = draw.randint(1, writes)
        world.run(kill_at_write=number)
        return f"write {number}"
    moment = draw.uniform(0.02, seconds)
    process = world.start()
    process.join(moment)
    process.kill()
    process.join()
    return f"{moment:.2f} s"


def measure(world: World) -> tuple[float, int]:
    """Undisturbed: (seconds, calls that change a directory or sync)"""
    began = time.perf_counter()
    code = world.run()
    if code:
        raise RuntimeError(f"the undisturbed run failed: {world.output()[-3000:]}")
    return time.perf_counter() - began, int(world.log.with_suffix(".writes").read_text())
