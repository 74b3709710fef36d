"""Handles SIGINT, SIGTERM and SIGUSR1: finish the step, write a checkpoint, exit with the conventional code.

Outside training, a signal ends the program immediately. Files are then complete or removed. During training, the first
signal waits for the end of the step; a second signal does not wait. A batch system's signal (SLURM's requeue, which
Lightning handles) also waits for the end of the step. So its checkpoint can be resumed exactly. If a job has several
processes, `GracefulStop` lets all of them stop after the same step.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dream.utils.logging import get_logger

log = get_logger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(SystemExit):
    """Ends the program with exit code 128 + the signal's number.

    Attributes:
        checkpoint: the checkpoint to resume from, if it exists.
        sweep: folder of the sweep, if the run is a job of a sweep.
        agreed: whether all processes of the job stop after the same step.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name
        self.checkpoint: Path | None = None
        self.sweep: Path | None = None
        self.agreed = False


_waiting: bool = False  # whether a signal waits for the end of the step
_requested: int | None = None  # the signal that is waiting


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in this block on a signal of `STOPPING`. Like all signal handlers, it needs the main thread."""
    before = {signum: signal.signal(signum, on_signal) for signum in STOPPING}
    try:
        yield
    finally:
        wait_for_the_step(False)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def is_active() -> bool:
    """Whether this process is in a block of `interruptible`."""
    return signal.getsignal(signal.SIGINT) == on_signal


def ignore_in_worker(worker: int) -> None:
    """Make a loader worker ignore Ctrl-C, which a terminal also sends to workers: the last step still needs them."""
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)


def on_signal(signum: int, frame: Any) -> None:
    """The handler of the signals `STOPPING`."""
    global _requested
    if _waiting and _requested is None:
        _requested = signum
        log.info(f"\n{signal.Signals(signum).name}: stopping after this step (send it again to stop at once)")
        return
    raise Interrupted(signum)


def wait_for_the_step(waiting: bool) -> None:
    """Set whether signals wait for the end of the step. A waiting signal is dropped."""
    global _waiting, _requested
    _waiting, _requested = waiting, None


def stop_at_once() -> None:
    """Let the next signal end the program immediately, also in a step."""
    wait_for_the_step(False)


def requested() -> int | None:
    """The signal that waits for the end of the step, if any."""
    return _requested
