"""Hashes, locks, and files that are written completely or not at all.

A file is written under a temporary name (`.<name>.<random>.tmp`), flushed to disk and renamed. The writer holds a lock
on the temporary file. The kernel releases the lock when the process ends. So if a temporary file can be locked, its
process has ended, and the next start removes the file.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dream.utils.errors import DamageError, DataError

FINGERPRINT_CHARACTERS = 12
LOCK = ".lock"  # in a directory that cannot be locked itself
CHECKSUM = "checksum"  # last key of a JSON file that contains its own checksum

_held: set[int] = set()  # descriptors of locks; a forked loader worker must not hold them after its parent has ended


def _release_all() -> None:
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_release_all)


def fingerprint(description: Any) -> str:
    """Short hash of a description of JSON values. Equal descriptions have equal hashes."""
    canonical = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(canonical.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename it to `path`."""
    write_bytes(path, _json(content))


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with its checksum, which `read_checked_json` verifies."""
    write_json(path, content | {CHECKSUM: fingerprint(content)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read what `write_checked_json` wrote.

    Raises:
        DamageError: the file is missing or its content has changed. The message names the file.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        if content.pop(CHECKSUM) == fingerprint(content) and raw == _json(content | {CHECKSUM: fingerprint(content)}):
            return content
    except FileNotFoundError as error:
        raise DamageError(f"{path}: missing") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DamageError(f"{path}: damaged (its checksum is missing or has changed)")


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write under a temporary name, flush to disk, rename to `path`. If this fails, the old file is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary(path, Path.touch) as unfinished:
            with unfinished.open("r+b") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            flush_to_disk(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def point_latest(link: Path, target: Path) -> None:
    """Point the symbolic link `link` at `target`. An existing link is replaced in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary_name(link)
    unfinished.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    unfinished.replace(link)


def try_lock(path: Path) -> int | None:
    """Lock a file or directory until this process ends or unlocks it.

    Network file systems lock only files that are open for writing. There, the file `LOCK` in a directory is locked.

    Returns:
        The lock, or None if another process holds it or the path does not exist.

    Raises:
        DataError: the file system has no locks.
    """
    is_folder = path.is_dir()
    try:
        return _lock(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except OSError as error:
        if error.errno == errno.EBADF and is_folder:
            return try_lock_in(path)
        raise _no_locks(path, error) from error


def try_lock_in(folder: Path) -> int | None:
    """Lock the file `LOCK` in a directory. Returns and raises as `try_lock`."""
    try:
        return _lock(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise _no_locks(folder, error) from error


def _lock(path: Path, flags: int) -> int | None:
    """The lock; None if it is taken or the path does not exist. Raises OSError if the path cannot be locked."""
    try:
        lock = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == path.stat().st_ino:
            _held.add(lock)
            return lock
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.ENOENT):
            os.close(lock)
            raise
    os.close(lock)
    return None


def _no_locks(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be locked ({error.strerror}); choose paths.data and paths.logs on a file system "
                     "with locks")  # fmt: skip


def unlock(lock: int) -> None:
    """Release a lock of `try_lock`."""
    _held.discard(lock)
    os.close(lock)


def temporary_name(path: Path) -> Path:
    """A hidden name in the folder of `path` that no other process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether the name is one of `temporary_name`. Other programs have hidden files that end with .tmp, too."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name) is not None


@contextmanager
def temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new, locked temporary file or directory. It is removed at the end if it still has its temporary name."""
    lock = None
    while lock is None:  # another process may remove the file before it is locked
        unfinished = temporary_name(path)
        make(unfinished)
        lock = try_lock(unfinished)
    try:
        yield unfinished
    finally:
        remove(unfinished)
        unlock(lock)


def remove(path: Path) -> None:
    """Delete a file, link or directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of the file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
