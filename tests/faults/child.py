"""One run of a console script in a process of its own, forked from a server that has imported everything once."""

import importlib
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    nobody: bool,
    environment: dict[str, str] | None,
) -> None:
    """Run `dream-<script>` here, its output in `log`; kill -9 before the n-th call that changes a directory or syncs.

    With `nobody`, without root's right to read everything.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.environ.update(environment or {})
    from dream.indexes.generation import IndexHandle

    IndexHandle.__init__.__defaults__ = (ROWS_PER_SHARD,)  # several shards of a tiny corpus
    if nobody:
        os.setresuid(65_534, 65_534, 65_534)
    count_writes(kill_at_write, log.with_suffix(".writes"))
    sys.argv = [f"dream-{script}", *arguments]
    importlib.import_module(f"dream.{script}").main()


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
