"""Checkpoints are written completely or not at all, and verified before they are read. Reading never runs code."""

import hashlib
import io
import signal
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from dream.utils import ranks, signals
from dream.utils.atomic_io import write_bytes
from dream.utils.errors import DamageError, DataError

PIECE = 1 << 22  # bytes read at a time
MARK = b"sha256:"  # start of the archive's comment, which ends the file: the checksum of all bytes before the comment
TAKEN = (signal.SIGTERM, signal.SIGUSR1)  # signals that Lightning handles, too
COMMENT_BYTES = len(MARK) + 64


class SafeCheckpointIO(TorchCheckpointIO):
    """Lets Lightning write checkpoints (temporary name, then renamed) and read them (verified, without code)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        _append_checksum(buffer)
        write_bytes(Path(path), buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class OwnSignals(L.Callback):
    """Takes SIGTERM and SIGUSR1 back from Lightning: its handlers would exchange tensors in the middle of a step.

    Lightning sets its handlers between `on_fit_start` and `on_train_start`; signals wait during this time. It must be
    the first callback, so that a signal in another callback's `on_train_start` ends the program immediately.

    Attributes:
        requeue: Lightning's answer to the signal of a batch system, if it runs under SLURM.
        wants_requeue: whether this signal was received.
    """

    def __init__(self) -> None:
        self.requeue: Callable | None = None
        self.wants_requeue = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)
        if signal.getsignal(signal.SIGUSR1) == signals.on_signal:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # Lightning would not replace a handler

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        handler = signal.getsignal(signal.SIGUSR1)
        if callable(handler) and handler != signals.on_signal:
            self.requeue = handler
        self._take()
        if self.requeue is not None:
            signal.signal(signal.SIGUSR1, self._postpone)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has restored the handlers of `on_fit_start`. If it did not train, the signals still wait."""
        self._take()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)

    def _take(self) -> None:
        if signals.is_active():
            for signum in TAKEN:
                signal.signal(signum, signals.on_signal)

    def _postpone(self, signum: int, frame: Any) -> None:
        self.wants_requeue = True


class GracefulStop(Checkpoint):
    """After a signal, saves `checkpoint` at the end of the current step and raises Interrupted.

    If the job has several processes, all of them stop after the same step, whichever of them got the signal. The signal
    of a batch system is answered by Lightning (checkpoint and requeue), also after the same step.

    It is a Checkpoint, because Lightning calls checkpoints after all other callbacks. It must be the last callback, and
    its `own_signals` must be the first one.

    Args:
        checkpoint: the file to write.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.own_signals = OwnSignals()
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        signals.wait_for_the_step(True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # a checkpoint would not contain the accumulated gradients of an incomplete step
        self._step = trainer.global_step
        signum, wants_requeue = self._agree(trainer)
        if wants_requeue and self.own_signals.requeue is not None:
            self.own_signals.wants_requeue = False
            self.own_signals.requeue(signal.SIGUSR1, None)
        if signum:
            trainer.save_checkpoint(self.checkpoint, False)  # not only the weights
            self._stop(trainer, signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle a signal that came after the last step."""
        signum, _ = self._agree(trainer)
        signals.wait_for_the_step(False)
        if signum:
            self._stop(trainer, signum)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        signals.wait_for_the_step(False)

    def _agree(self, trainer: L.Trainer) -> tuple[int, int]:
        """(the signal that any process got, or 0; whether any process got the signal of a batch system)"""
        own = [signals.requested() or 0, int(self.own_signals.wants_requeue)]
        signum, wants_requeue = ranks.largest(own) if trainer.world_size > 1 else own
        return signum, wants_requeue

    def _stop(self, trainer: L.Trainer, signum: int) -> NoReturn:
        stop = signals.Interrupted(signum)
        stop.agreed = trainer.world_size == ranks.world()
        raise stop


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises DataError if the file is damaged or contains code."""
    verify_checkpoint(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise DataError(f"{path}: refused, because it holds more than tensors and plain values, and loading it could "
                        "run code; choose a checkpoint that this project wrote") from error  # fmt: skip
    except (RuntimeError, ValueError, KeyError, EOFError, AttributeError, TypeError, IndexError) as error:
        raise _damaged(path, error) from error


def verify_checkpoint(path: Path) -> None:
    """Raise DamageError if the file has changed since it was written.

    Checkpoints of this project end with a checksum of all bytes. Other checkpoints have only torch's CRC-32 of each
    record, which does not cover the padding between records.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.comment:
                _compare_checksum(path, archive.comment)
                return
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:  # torch does not compress records
                    raise zipfile.BadZipFile(f"{record.filename} is compressed")
                with archive.open(record) as content:
                    while content.read(PIECE):
                        pass
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, KeyError,
            IndexError, zlib.error) as error:  # fmt: skip
        raise _damaged(path, error) from error


def _append_checksum(buffer: io.BytesIO) -> None:
    """Give the archive a comment with the SHA-256 of all bytes before the comment."""
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = MARK + b"0" * 64  # has the final length, because the archive stores it before the comment
    content = buffer.getbuffer()
    content[-64:] = hashlib.sha256(content[:-COMMENT_BYTES]).hexdigest().encode()


def _compare_checksum(path: Path, comment: bytes) -> None:
    digest, left = hashlib.sha256(), path.stat().st_size - COMMENT_BYTES
    with path.open("rb") as file:
        while piece := file.read(min(PIECE, left)):
            digest.update(piece)
            left -= len(piece)
    if comment != MARK + digest.hexdigest().encode():
        raise zipfile.BadZipFile("its checksum has changed")


def _damaged(path: Path, error: Exception) -> DamageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DamageError(f"{path}: damaged checkpoint ({reason[:120]}), which cannot be repaired: resume from another "
                       "one, e.g. best.ckpt in the same folder (ckpt=FILE), or start without ckpt")  # fmt: skip
