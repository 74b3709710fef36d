"""Embeds snapshots in a process of their own, on the CPU, while training continues.

    <folder>/pending-snapshot-00000500/   written at step 500, before the process starts
        encoder/                          the encoder, as `Encoder.save` writes it
        encoder.safetensors               the weights that the snapshot keeps

If the run is killed, the next one embeds the missing shards of the snapshot from this folder.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch, also in the process
from dream.encoders.base import Encoder
from dream.indexes.embedding import PENDING
from dream.indexes.overlap import overlap
from dream.indexes.snapshot import IndexHandle
from dream.indexes.snapshot_weights import WEIGHTS, save_weights
from dream.store.store import Store
from dream.utils import ranks
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.child_process import start_child
from dream.utils.errors import DreamError

ENCODER, LOG = "encoder", ".log"
NICE = 10  # the process gives way to training


class BackgroundSnapshots:
    """The snapshot that another process embeds, or has embedded. All ranks call it; rank 0 starts the process.

    Args:
        handle: the handle that will search the snapshots.
        encoder: the encoder in training.
        store: the passages.
        batch_passages: passages of a forward pass.

    Attributes:
        path: where the snapshot is when it is complete; None: there is none.
        step: its optimizer step.
        fingerprint: hash of the encoder's weights.
    """

    def __init__(self, handle: IndexHandle, encoder: Encoder, store: Store, batch_passages: int) -> None:
        self.handle, self.encoder, self.store, self.batch_passages = handle, encoder, store, batch_passages
        self.path: Path | None = None
        self.step, self.fingerprint = 0, ""
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None  # the process ends when it is closed

    def start(self, step: int) -> None:
        """Write the current encoder, and embed the corpus with it."""
        self.step, self.fingerprint = step, ranks.on_rank_zero(self.encoder.fingerprint)
        self.path = ranks.on_rank_zero(self._start)

    def _start(self) -> Path:
        name, exists = self.handle.name_of(self.fingerprint, self.store.hash, self.step)
        path = self.handle.folder / name
        if not exists:
            with new_directory(pending_folder(path), replace=True) as unfinished:
                (unfinished / ENCODER).mkdir()
                self.encoder.save(unfinished / ENCODER)
                save_weights(self.encoder, unfinished / WEIGHTS)
            self._embed(path, pending_folder(path))
        return path

    def resume(self, paths: Sequence[Path], step: int, fingerprint: str) -> bool:
        """Continue with a snapshot of an interrupted run. Returns False if neither it nor its encoder is there.

        Args:
            paths: where it may be; the first one is in the folder of the handle.
            step: its optimizer step.
            fingerprint: hash of the encoder's weights.
        """

        def find() -> Path | None:
            for path in paths:
                if verify_or_discard(path):
                    return path
            for path in paths:
                if verify_or_discard(pending_folder(path)):
                    self._embed(paths[0], pending_folder(path))
                    return paths[0]
            return None

        self.step, self.fingerprint = step, fingerprint
        self.path = ranks.on_rank_zero(find)
        return self.path is not None

    def open(self) -> float | None:
        """Wait until the snapshot is complete, and search it. Returns its `overlap` with the old one, on rank 0.

        Raises:
            DreamError: the process has failed.
        """
        assert self.path is not None
        ranks.on_rank_zero(self._wait)
        old = self.handle.current
        self.handle.open(self.path, self.store, self.encoder.width, self.fingerprint)
        self.path = None
        assert self.handle.current is not None
        return overlap(old, self.handle.current) if old and ranks.is_first() else None

    def stop(self) -> None:
        """End the process. What it has embedded is kept for the next time."""
        self.path = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _wait(self) -> None:
        if self._process is None or self.path is None:
            return
        code = self._process.wait()
        self._forget()
        log = self._log_of(self.path)
        if code:
            said = (log.read_text(errors="replace").strip().splitlines() if log.exists() else []) or ["no message"]
            raise DreamError(f"callbacks.index_refresh.mode=background: the process that embeds {self.path.name} has "
                             f"ended with code {code} ({said[-1]}); ckpt=auto resumes the run, and mode=blocking needs "
                             "no second process")  # fmt: skip
        log.unlink(missing_ok=True)

    def _forget(self) -> None:
        self._process = None
        if self._connection is not None:
            self._connection.close()

    def _log_of(self, path: Path) -> Path:
        return self.handle.folder / f"{PENDING}{path.name}{LOG}"

    def _embed(self, path: Path, source: Path) -> None:
        """Start the process. It ends with this one, however this one ends."""
        handle = self.handle
        job = {"index": handle.unbuilt, "previous": handle.current and handle.current.path,
               "folder": handle.folder, "rows_per_shard": handle.rows_per_shard,
               "encoder": type(self.encoder), "source": source, "store": self.store.path,
               "step": self.step, "fingerprint": self.fingerprint,
               "batch_passages": self.batch_passages}  # fmt: skip
        silent = dict.fromkeys(ranks.VARIABLES, "1")  # only rank 0 prints
        with self._log_of(path).open("wb") as log:
            self._process, self._connection = start_child(__name__, silent, subprocess.DEVNULL, log)
        with suppress(OSError):  # the process has ended: `_wait` reports it
            self._connection.send(job)


def pending_folder(path: Path) -> Path:
    """The folder of the encoder of an unfinished snapshot."""
    return path.with_name(PENDING + path.name)


def main(connection: Connection) -> None:
    """The process. It ends when the connection is closed."""
    job: dict[str, Any] = connection.recv()
    threading.Thread(target=_end_with, args=[connection], daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    try:
        encoder = job["encoder"].open(job["source"] / ENCODER).eval()
        if encoder.fingerprint() != job["fingerprint"]:
            raise DreamError(f"{job['source']}: has other weights than the run at step {job['step']}")
        if job["previous"] and hasattr(job["index"], "reuse"):
            job["index"].reuse(job["previous"])
        handle = IndexHandle(job["index"], job["folder"], job["rows_per_shard"])
        weights = job["source"] / WEIGHTS
        handle.refresh(encoder, Store(job["store"]), job["step"], "cpu", job["batch_passages"], weights)
    except DreamError as error:
        sys.exit(str(error))


def _end_with(connection: Connection) -> None:
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(1)
