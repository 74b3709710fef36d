"""One run of a console script in a process of its own, forked from a server that has imported everything once."""

import ctypes
import importlib
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

import dream.runtime  # noqa: F401  first, as in every entry point

for name in ("lightning", "torch", "transformers", "faiss", "bm25s", "dream.runs", "dream.train", "dream.pretrain"):
    importlib.import_module(name)
for name in ("dream.scorers.scratch", "dream.encoders.static", "dream.indexes.faiss", "dream.candidates.mixture",
             "dream.callbacks.refresh", "dream.callbacks.evaluation", "dream.callbacks.supervision",
             "lightning.pytorch.loggers.tensorboard", "dream.corpora.jsonl",
             "transformers.models.llama.modeling_llama", "torch.utils.tensorboard"):  # fmt: skip
    importlib.import_module(name)

WRITES = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
ROWS_PER_SHARD = 150


def run(
    script: str,
    arguments: list[str],
    log: Path,
    kill_at_write: int | None,
    powerless: bool,
    environment: dict[str, str] | None,
) -> None:
    """Run `dream-<script>` here, its output in `log`; kill -9 before the n-th call that changes a directory or syncs.

    With `powerless`, without root's right to read everything.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.environ.update(environment or {})
    from dream.indexes.generation import IndexHandle

    IndexHandle.__init__.__defaults__ = (ROWS_PER_SHARD,)  # several shards of a tiny corpus
    if powerless:
        obey_file_modes()
    count_writes(kill_at_write, log.with_suffix(".writes"))
    sys.argv = [f"dream-{script}", *arguments]
    importlib.import_module(f"dream.{script}").main()


def obey_file_modes() -> None:
    """Give up the capabilities by which root reads and writes whatever it likes; see capabilities(7)."""
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for place in (0, 1):  # effective and permitted, the lower 32 bits
        data[place] &= ~0b110  # DAC_OVERRIDE and DAC_READ_SEARCH
    if libc.capset(header, data):
        raise OSError("capset failed")


def count_writes(kill_at: int | None, record: Path) -> None:
    """Count the calls of `os` that change a directory or sync; without a number, note how many there were."""
    numbers = itertools.count(1)

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            number = next(numbers)
            if kill_at is None:
                record.write_text(str(number))
            elif number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))


class SignalAtStep(L.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)
