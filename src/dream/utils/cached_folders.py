"""Folders that are written completely or not at all, and are verified before they are used.

A finished folder contains `checksums.json`: the size and SHA-256 of each of its files. A damaged cached folder is
reported, deleted and rebuilt.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dream.utils.atomic_io import (
    LOCK,
    checksum,
    flush_to_disk,
    is_temporary,
    remove,
    temporary,
    temporary_name,
    try_lock,
    unlock,
    write_bytes,
)
from dream.utils.errors import DamageError, DataError
from dream.utils.logging import get_logger
from dream.utils.verified import VERIFIED, is_recorded, record, stamps_of

log = get_logger(__name__)

CHECKSUMS = "checksums.json"
WAIT_SECONDS = 1.0
LINK_SECONDS = 60  # a link cannot be locked; if a temporary link is older, its process has ended


@contextmanager
def new_directory(path: Path, replace: bool = False, checksums: bool = True) -> Iterator[Path]:
    """Yield a temporary directory next to `path`. It is renamed to `path` if the block ends without an error.

    If another process has completed the same directory, its copy is kept. Names are hashes of the content, so both
    copies are equal. With `replace`, an existing directory is replaced. Without `checksums`, it gets no file of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with temporary(path, Path.mkdir) as unfinished:
        yield unfinished
        if checksums:
            seal(unfinished)
        else:
            _flush(unfinished)
        if replace and path.exists():
            discard(path)
        _rename(unfinished, path)


@contextmanager
def unfinished_directory(path: Path, known: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Like `new_directory`, but if the block fails or is killed, its files are kept for the next time.

    Args:
        path: the directory.
        known: SHA-256 of files that need not be hashed again, by name. The block may add to it. None: of no file.

    Raises:
        DataError: another process is writing the same directory.
    """
    unfinished = path.with_name(f".{path.name}.partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    lock = try_lock(unfinished)
    if lock is None:
        raise DataError(f"{unfinished}: another process is writing it; wait for it, or give this run another folder")
    try:
        yield unfinished
        seal(unfinished, known)
        _rename(unfinished, path)
    finally:
        unlock(lock)


@contextmanager
def exclusive_workdir(folder: Path) -> Iterator[Path]:
    """Yield a working directory when no other process uses it. If the block ends without an error, it is deleted."""
    waiting = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if (lock := try_lock(folder)) is not None:
            break
        if not waiting:
            log.info(f"Another process is working in {folder}: waiting for it")
        waiting = True
        time.sleep(WAIT_SECONDS)
    try:
        yield folder
        shutil.rmtree(folder)
    finally:
        unlock(lock)


def seal(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Flush all files to disk, then write their sizes and checksums. `known`: see `unfinished_directory`."""
    files = {str(file.relative_to(folder)): file for file in _flush(folder)}
    digests = dict(known or {})
    unknown = [name for name in files if name not in digests]
    with ThreadPoolExecutor() as threads:  # hashing a file does not hold Python's lock
        digests |= zip(unknown, threads.map(checksum, [files[name] for name in unknown]), strict=True)
    entries = {name: [file.stat().st_size, digests[name]] for name, file in files.items()}
    write_bytes(folder / CHECKSUMS, _listing(entries))


def _flush(folder: Path) -> list[Path]:
    """Flush all files of the folder to disk, and return them."""
    own = (CHECKSUMS, LOCK, VERIFIED)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in own)
    for file in files:
        flush_to_disk(file)
    return files


def _listing(entries: dict[str, list]) -> bytes:
    """Content of the checksum file, which includes its own checksum."""
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    return (json.dumps({"checksum": digest, "files": entries}, indent=1) + "\n").encode()


def verify(folder: Path, ignore: str | None = None) -> None:
    """Check that the folder has not changed since `seal`.

    The checksums of a large folder are compared once: see `verified.py`.

    Args:
        folder: a sealed folder.
        ignore: name of a file that may be damaged.

    Raises:
        DamageError: a file is missing or has changed. The message names the file.
    """
    listing = folder / CHECKSUMS
    try:
        if not listing.is_file():
            raise DamageError(f"{listing}: missing, so nothing in this folder can be verified")
        entries = _entries(listing)
        stamps = stamps_of(folder, [CHECKSUMS, *entries])
        is_new = not is_recorded(folder, stamps)
        for name, (size, digest) in entries.items():
            file = folder / name
            if name == ignore:
                continue
            if not file.is_file():
                raise DamageError(f"{file}: missing")
            if file.stat().st_size != size:
                raise DamageError(f"{file}: damaged ({file.stat().st_size:,} bytes instead of {size:,})")
            if is_new and checksum(file) != digest:
                raise DamageError(f"{file}: damaged (its checksum has changed)")
        if is_new and ignore is None:
            record(folder, stamps)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error


def _entries(listing: Path) -> dict[str, list]:
    raw = listing.read_bytes()
    try:
        entries = json.loads(raw)["files"]
        if raw == _listing(entries):
            return entries
    except (ValueError, TypeError, KeyError):
        pass
    raise DamageError(f"{listing}: damaged")


def verify_or_discard(folder: Path) -> bool:
    """Whether a cached folder exists and is undamaged. A damaged folder is logged and deleted."""
    if not folder.exists():
        return False
    try:
        verify(folder)
    except DamageError as damage:
        log.warning(f"{damage}: rebuilding {folder.name}")
        discard(folder)
        return False
    return True


def discard(folder: Path) -> None:
    """Delete a file or directory. For other processes it disappears in one step."""
    unfinished = temporary_name(folder)
    with suppress(FileNotFoundError):
        folder.rename(unfinished)
    remove(unfinished)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of ended processes from this folder."""
    for path in filter(is_temporary, folder.glob(".*.tmp")):
        if path.is_symlink():
            if time.time() - path.lstat().st_mtime > LINK_SECONDS:
                path.unlink(missing_ok=True)
        elif (lock := try_lock(path)) is not None:
            remove(path)
            unlock(lock)


def _rename(unfinished: Path, path: Path) -> None:
    try:
        unfinished.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(unfinished, ignore_errors=True)
    flush_to_disk(path.parent)
