"""One run of a console script in a process of its own, forked from a server that has imported everything once."""

import ctypes
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import lightning as L

import dream.utils.runtime  # noqa: F401  first, as in every entry point

for name in ("lightning", "torch", "transformers", "faiss", "bm25s", "dream.runs.session", "dream.commands.train",
             "dream.commands.pretrain",
             "dream.commands.search", "dream.evaluation.searcher"):  # fmt: skip
    importlib.import_module(name)
for name in ("dream.scorers.pretraining.scratch", "dream.encoders.static", "dream.indexes.faiss",
             "dream.candidates.mixture", "dream.callbacks.index_refresh", "dream.callbacks.evaluation",
             "dream.callbacks.candidate_panels",
             "lightning.pytorch.loggers.tensorboard", "dream.corpora.pydocs",
             "transformers.models.llama.modeling_llama", "torch.utils.tensorboard"):  # fmt: skip
    importlib.import_module(name)

WRITES = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
ROWS_PER_SHARD = 150  # several shards of a tiny corpus
PHASES = {  # while this function of this module runs, the run is said to be …
    "preparing the corpus": ("dream.corpora.pydocs", "PyDocsCorpus.__init__"),
    "preparing the tokenizer": ("dream.scorers.pretraining.scratch", "open_or_train_tokenizer"),
    "preparing the store": ("dream.data.window_datamodule", "open_or_build"),
    "preparing BM25": ("dream.indexes.bm25", "BM25Index.open_or_build"),
    "pretraining": ("dream.scorers.pretraining.scratch", "train"),
    "measuring the scorer": ("dream.scorers.pretraining.scratch", "measure_gain"),
    "training": ("lightning", "Trainer.fit"),
    "refreshing": ("dream.indexes.snapshot", "IndexHandle.refresh"),
    "checkpointing": ("dream.utils.checkpoints", "SafeCheckpointIO.save_checkpoint"),
    "evaluating": ("dream.callbacks.evaluation", "RetrievalEvaluation._evaluate"),
    "finishing": ("dream.runs.session", "Run.finish"),
    "evaluating at the end": ("dream.callbacks.final_report", "FinalReport.on_fit_end"),
}
STARTING = "starting"


@dataclass
class Disturbance:
    """What happens to a run."""

    kill_at_write: int | None = None  # kill -9 before the n-th call that changes a directory or syncs
    powerless: bool = False  # without root's right to read everything
    phase: str | None = None  # at the `time`-th beginning of this phase …
    at_write: str | None = None  # … or, where this is given, once a file of this name is in its place in the phase …
    time: int = 1
    delay: float = 0  # … and this many seconds later …
    signum: int | None = None  # … the process gets this signal
    fill: Path | None = None  # … and this folder's disk fills up
    folder: Path | None = None  # where the command is started


def run(
    script: str, arguments: list[str], log: Path, disturbance: Disturbance, environment: dict[str, str] | None
) -> None:
    """Run `dream-<script>` here, its output in `log`, its phases in the file beside it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a process of its own
    if disturbance.folder is not None:
        os.chdir(disturbance.folder)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.environ.update(environment or {})
    from dream.indexes.snapshot import IndexHandle

    IndexHandle.__init__.__defaults__ = (ROWS_PER_SHARD,)
    if disturbance.powerless:
        obey_file_modes()
    note_phases(log.with_suffix(".phases"), disturbance)
    count_writes(disturbance, log.with_suffix(".writes"))
    sys.argv = [f"dream-{script}", *arguments]
    importlib.import_module(f"dream.commands.{script}").main()


def obey_file_modes() -> None:
    """Give up the capabilities by which root reads and writes whatever it likes; see capabilities(7)."""
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for place in (0, 1):  # effective and permitted, the lower 32 bits
        data[place] &= ~0b110  # DAC_OVERRIDE and DAC_READ_SEARCH
    if libc.capset(header, data):
        raise OSError("capset failed")


_phases = [STARTING]  # that the run is in, the innermost last


def count_writes(disturbance: Disturbance, record: Path) -> None:
    """Count the calls of `os` that change a directory or sync; without a number, note how many there were."""
    numbers, times = itertools.count(1), itertools.count(1)

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            number = next(numbers)
            if disturbance.kill_at_write is None:
                record.write_text(str(number))
            elif number == disturbance.kill_at_write:
                os.kill(os.getpid(), signal.SIGKILL)
            done = function(*arguments, **options)
            written = Path(str(arguments[-1])).name if function.__name__ in ("replace", "rename") else None
            if written and written == disturbance.at_write and disturbance.phase in _phases:
                disturb_at(disturbance, times)
            return done

        return call

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))


def note_phases(record: Path, disturbance: Disturbance) -> None:
    """Append a line `seconds begins phase` at each change; what is written is there even if the process is killed."""
    began, times = time.perf_counter(), itertools.count(1)
    descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def note(begins: bool) -> None:
        os.write(descriptor, f"{time.perf_counter() - began:.6f} {int(begins)} {_phases[-1]}\n".encode())

    def watched(phase: str, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            _phases.append(_phases[-1] if phase == "training" and "pretraining" in _phases else phase)
            note(begins=True)
            try:
                if phase == disturbance.phase and disturbance.at_write is None:
                    disturb_at(disturbance, times)
                return function(*arguments, **options)
            finally:
                _phases.pop()
                note(begins=False)

        return call

    note(begins=True)
    for phase, (module_name, path) in PHASES.items():
        *owners, name = path.split(".")
        module = importlib.import_module(module_name)
        owner = attrgetter(".".join(owners))(module) if owners else module
        whole = owner.__dict__[name]
        if isinstance(whole, classmethod):
            setattr(owner, name, classmethod(watched(phase, whole.__func__)))
        else:
            setattr(owner, name, watched(phase, whole))


def disturb_at(disturbance: Disturbance, times: Iterator[int]) -> None:
    if next(times) != disturbance.time:
        return
    if disturbance.fill is not None:
        fill(disturbance.fill)
    if disturbance.signum is not None and disturbance.delay:
        threading.Timer(disturbance.delay, os.kill, (os.getpid(), disturbance.signum)).start()
    elif disturbance.signum is not None:
        os.kill(os.getpid(), disturbance.signum)


def fill(folder: Path) -> None:
    """Leave no byte of the folder's disk free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


class SignalAtStep(L.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)
