"""Locks a run's folder, so that only one process at a time writes to it, and removes what no run uses."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dream.runs.layout import CONFIG, LAST, SUMMARY
from dream.utils.atomic_io import try_lock, unlock
from dream.utils.cached_folders import discard, remove_leftovers
from dream.utils.errors import DataError


@contextmanager
def claimed(folder: Path, resumed: bool) -> Iterator[Path]:
    """Lock the run's folder, so that no other process writes to it.

    A new run takes the first free name, because two runs can start in the same second. A resumed run takes its own
    folder.

    Raises:
        DataError: another process is still training in the folder of a resumed run.
    """
    number, plain = 1, folder
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder)
        if lock is not None and (resumed or not (folder / CONFIG).exists()):
            break
        if lock is not None:
            unlock(lock)
        if resumed:
            raise DataError(f"{folder}: another process is still training this run; ckpt=FILE starts another run "
                            "from one of its checkpoints")  # fmt: skip
        number += 1
        folder = plain.with_name(f"{plain.name}_{number}")
    try:
        yield folder
    finally:
        unlock(lock)


def remove_unfinished(data: Path, logs: Path, run: Path) -> None:
    """Remove unfinished files of ended processes from the caches and all runs, unless a run can still use them."""
    caches = (file for pattern in (".*.tmp", "*/.*.tmp", "*/*/.*.tmp") for file in data.glob(pattern))
    for folder in {file.parent for file in (*caches, *logs.rglob(".*.tmp"))}:
        remove_leftovers(folder)
    for partial in logs.rglob("index/.*.partial"):
        folder = partial.parent.parent
        if folder != run and not _can_continue(folder) and (lock := try_lock(folder)) is not None:
            discard(partial)
            unlock(lock)


def _can_continue(folder: Path) -> bool:
    """Whether a run has work left: it is unfinished, or it was finished and is trained further."""
    last, summary = folder / LAST, folder / SUMMARY
    return last.exists() and (not summary.exists() or last.stat().st_mtime > summary.stat().st_mtime)


def remove_unused(folder: Path) -> None:
    """Remove the folder that Hydra created. If it is not empty, it belongs to another run."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def nothing_left(run: Path, logs: Path) -> Iterator[None]:
    """If the command is refused, remove the run's folder that Hydra has created, and those around it below `logs`.

    Folders that are not empty stay.
    """
    try:
        yield
    except Exception:
        for folder in (run, *run.parents):
            if logs not in folder.parents:
                break
            remove_unused(folder)
        raise
