"""SIGINT and SIGTERM: finish the step, write a checkpoint, exit with the conventional code.

While nothing is trained, a signal ends the program at once: whatever is written by then is complete or removed. While
steps are trained, the first signal waits for the end of the step, the second does not. A batch system's signal (SLURM's
requeue, which Lightning answers) waits for the end of the step as well, so that what it saves can be resumed exactly.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dream.runtime import say

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """Ends the program with 128 + the signal's number.

    `checkpoint`: where the run can go on, if anywhere; `sweep`: folder of the sweep that it was a job of.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name
        self.checkpoint: Path | None = None
        self.sweep: Path | None = None


_waiting: bool = False  # signals wait for the end of the step
_requested: int | None = None  # the one that came


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in this block when SIGINT or SIGTERM comes; works in the main thread only, as signals do."""
    before = {signum: signal.signal(signum, _on_signal) for signum in STOPPING}
    try:
        yield
    finally:
        wait_for_the_step(False)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def ignore_in_worker(worker: int) -> None:
    """A terminal sends its signal to loader workers, too; the main process still needs them for its last step."""
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)


def _on_signal(signum: int, frame: Any) -> None:
    global _requested
    if _waiting and _requested is None:
        _requested = signum
        say(f"\n{signal.Signals(signum).name}: stopping after this step (once more: at once)")
        return
    raise Interrupted(signum)


def wait_for_the_step(waiting: bool) -> None:
    """Let signals wait until `requested` is asked, or no longer."""
    global _waiting, _requested
    _waiting, _requested = waiting, None


def requested() -> int | None:
    """The signal that is waiting for the end of the step."""
    return _requested
