"""The processes of a job end together: if one fails or is stopped, all others learn why, and end too."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import NoReturn

from dream.utils import ranks, signals
from dream.utils.errors import DreamError

WATCH_SECONDS = 0.5
GRACE_SECONDS = 20  # a process that another rank has ended, and that does not end by itself, is stopped then
LAST_WORDS_SECONDS = 3


@dataclass(frozen=True)
class End:
    """Why a rank has ended before the others.

    Attributes:
        rank: its number.
        code: exit code of the whole job.
        reason: what happened; None if a signal stopped it.
    """

    rank: int
    code: int
    reason: str | None


@dataclass
class Job:
    """This process's view of the job."""

    group: ranks.Group
    children: dict[int, subprocess.Popen] = field(default_factory=dict)  # by rank
    ended: End | None = None  # another rank's end
    leaving: bool = False  # whether the main thread already ends
    closed: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Look for the end of another rank, and interrupt the main thread. Runs in a thread of its own."""
        while not self.closed.wait(WATCH_SECONDS):
            end = self._find_end()
            if end is None or self.closed.is_set():
                continue
            self.ended = end
            if self.leaving:
                return
            signals.stop_at_once()
            os.kill(os.getpid(), signal.SIGTERM)
            if not self.closed.wait(GRACE_SECONDS):  # the main thread waits in NCCL
                if self.group.rank == 0:
                    print(f"error: {_sentence(end)}", file=sys.stderr, flush=True)
                self.end_children(0)
                os._exit(end.code)
            return

    def _find_end(self) -> End | None:
        try:
            if self.group.store.check(["end"]):
                end = End(*self.group.hear("end"))
                return end if end.rank != self.group.rank else None
        except RuntimeError:  # the store is in rank 0's process, or in torchrun's
            return End(0, 1, "ended, or its machine cannot be reached")
        for rank, child in self.children.items():
            code = child.poll()
            if code is not None and not self.group.store.check([f"bye/{rank}"]):
                self.report(_end_of(rank, code))
                return End(*self.group.hear("end"))
        return None

    def report(self, end: End) -> None:
        """Tell all ranks, unless another end was reported before."""
        with suppress(RuntimeError):
            if not self.group.store.check(["end"]):
                self.group.tell("end", astuple(end))

    def leave(self, seconds: float) -> None:
        """Say goodbye. Rank 0 holds the store, so it waits for all others."""
        group = self.group
        with suppress(RuntimeError):
            group.store.set(f"bye/{group.rank}", "")
            end = time.monotonic() + seconds
            keys = [f"bye/{rank}" for rank in range(group.world)]
            while group.rank == 0 and not group.store.check(keys) and time.monotonic() < end:
                time.sleep(ranks.POLL_SECONDS)
        self.closed.set()
        self.end_children(seconds)

    def end_children(self, seconds: float) -> None:
        """Wait until the processes that this one started have ended; then stop them."""
        for stop in (None, subprocess.Popen.terminate, subprocess.Popen.kill):
            for child in self.children.values():
                if stop and child.poll() is None:
                    stop(child)
            end = time.monotonic() + seconds
            for child in self.children.values():
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, end - time.monotonic()))

    def end(self, error: BaseException) -> NoReturn:
        """Tell the other ranks why this one ends, or report why another one has. Raises what ends this process."""
        self.leaving = True
        stopped = error if isinstance(error, signals.Interrupted) else None
        agreed = stopped is not None and stopped.agreed
        if stopped is None and not isinstance(error, DreamError):
            self._wait_for_the_cause()
        if self.ended is None and not agreed:
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            text = " ".join(str(error).split()) or type(error).__name__
            self.report(End(self.group.rank, code, None if stopped else text))
        end, is_first = self.ended, self.group.rank == 0
        self.leave(GRACE_SECONDS if agreed else LAST_WORDS_SECONDS)
        if not is_first and (end or stopped or isinstance(error, DreamError)):
            raise SystemExit(end.code if end else getattr(error, "code", 1)) from error
        if end is None:
            raise error
        if end.reason is not None:
            raise DreamError(_sentence(end)) from error
        stop = signals.Interrupted(end.code - 128)
        if stopped:
            stop.checkpoint, stop.sweep = stopped.checkpoint, stopped.sweep
        raise stop from error

    def _wait_for_the_cause(self) -> None:
        """An error of torch.distributed may only be the effect of another rank's end, which is noticed a bit later."""
        end = time.monotonic() + LAST_WORDS_SECONDS
        while self.ended is None and time.monotonic() < end:
            time.sleep(ranks.POLL_SECONDS)


def _end_of(rank: int, code: int) -> End:
    """What the exit code of a process says about its end. Negative: the number of the signal that has killed it."""
    signum = -code if code < 0 else code - 128
    if signum in signals.STOPPING:
        return End(rank, 128 + signum, None)
    cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return End(rank, 1, f"{cause}; ckpt=auto resumes the run from its last checkpoint")


def _sentence(end: End) -> str:
    return f"rank {end.rank} of the job: {end.reason}"
