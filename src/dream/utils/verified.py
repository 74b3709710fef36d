"""Remembers that the checksums of a large folder were compared, so that later starts need not read it.

The file `.verified` in the folder has the size, the inode and the times of the last change of each file: of its content
(mtime) and of its content or name (ctime, which no program can set back). If any of them differs, all checksums are
compared again. `DREAM_VERIFY=1` always compares them. Not noticed are changes that the file system does not record: a
disk that returns other bytes than were written, or a program that writes to the disk below the file system.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dream.utils.atomic_io import read_checked_json, write_checked_json
from dream.utils.errors import DataError

VERIFIED = ".verified"
ALWAYS = "DREAM_VERIFY"  # environment variable
LARGE_BYTES = 100_000_000  # a smaller folder is verified in less than 0.3 s, and always
SETTLED_SECONDS = 2.0  # a file that changes twice within the clock's resolution has the same times

Stamps = dict[str, list[int]]  # by file name: size, inode, mtime and ctime in ns


def stamps_of(folder: Path, names: Iterable[str]) -> Stamps | None:
    """The stamps of these files; None if one is missing, or if they are small."""
    try:
        found = {name: (folder / name).stat() for name in names}
    except FileNotFoundError:
        return None
    if sum(stat.st_size for stat in found.values()) < LARGE_BYTES:
        return None
    return {name: [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in found.items()}


def is_recorded(folder: Path, stamps: Stamps | None) -> bool:
    """Whether the files were verified when they had the same stamps."""
    if stamps is None or os.environ.get(ALWAYS) == "1":
        return False
    try:
        return read_checked_json(folder / VERIFIED)["stamps"] == stamps
    except DataError:
        return False


def record(folder: Path, stamps: Stamps | None) -> None:
    """Record that files were verified. `stamps` are those from before. A folder that cannot be written is no error."""
    if stamps is None or stamps_of(folder, stamps) != stamps:
        return
    last_change = max(max(times) for _, _, *times in stamps.values())
    if last_change < (time.time() - SETTLED_SECONDS) * 1e9:
        with suppress(OSError):
            write_checked_json(folder / VERIFIED, {"stamps": stamps})
