"""Content hashes, and files and directories that exist whole or not at all, and are known to be whole when read.

Whatever is written goes to a name of its own (`.<name>.<random>.tmp`), reaches the disk, and is renamed. The writer
holds a lock on it meanwhile, which the kernel lets go when the process ends, however it ends: what carries such a name
and can be locked was left by a dead process, and the next start removes it. A directory carries the sizes and SHA-256
sums of its files, which are compared before it is used again.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dream.errors import DamageError, DataError
from dream.runtime import say

FINGERPRINT_CHARACTERS = 12
CHECKSUMS = "checksums.json"
CHECKSUM = "checksum"  # last key of a file that is written alone
WAIT_SECONDS = 1.0
LINK_SECONDS = 60  # a link cannot be locked; an unfinished one as old as this was left behind

_held: set[int] = set()  # descriptors of locks; a forked loader worker must not keep them when its parent dies


def _let_go() -> None:
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def fingerprint(description: Any) -> str:
    """Short hash of a JSON-able description: equal descriptions, equal names."""
    canonical = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(canonical.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside, then rename over `path`."""
    write_bytes(path, _json(content))


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """`write_json` of the content, and of a checksum that `read_checked_json` compares."""
    write_json(path, content | {CHECKSUM: fingerprint(content)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """What `write_checked_json` wrote. Raises DamageError, naming the file, where it is not that."""
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
    """Write aside, wait until the disk has it, rename over `path`. A failure leaves the old file; OSError names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _aside(path, Path.touch) as aside:
            with aside.open("r+b") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def new_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`, renamed to it when the block ends without an error.

    If another process completed the same directory first, its copy is kept: names are hashes of the content, so both
    are equal. With `replace` the old one gives way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with _aside(path, Path.mkdir) as aside:
        yield aside
        seal(aside)
        if replace and path.exists():
            discard(path)
        _rename(aside, path)


@contextmanager
def unfinished_directory(path: Path) -> Iterator[Path]:
    """Like `new_directory`, but what a block that failed or was killed had written is there again the next time."""
    aside = path.with_name(f".{path.name}.partial")
    aside.mkdir(parents=True, exist_ok=True)
    lock = try_lock(aside)
    if lock is None:
        raise DataError(f"{aside}: another process is writing it; wait for it, or let this run have its own folder")
    try:
        yield aside
        seal(aside)
        _rename(aside, path)
    finally:
        unlock(lock)


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """Yield a working directory, once no other process has it; deleted when the block ends without an error."""
    told = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if (lock := try_lock(folder)) is not None:
            break
        if not told:
            say(f"Another process is at work in {folder}: waiting for it")
        told = True
        time.sleep(WAIT_SECONDS)
    try:
        yield folder
        shutil.rmtree(folder)
    finally:
        unlock(lock)


def seal(folder: Path) -> None:
    """Write the sizes and checksums of all files in the folder, once all of them have reached the disk."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    for file in files:
        _sync(file)
    entries = {str(file.relative_to(folder)): [file.stat().st_size, checksum(file)] for file in files}
    write_bytes(folder / CHECKSUMS, _listing(entries))


def _listing(entries: dict[str, list]) -> bytes:
    """The file of checksums, which carries its own."""
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    return (json.dumps({"checksum": digest, "files": entries}, indent=1) + "\n").encode()


def verify(folder: Path, content: bool = True, but: str | None = None) -> None:
    """Raise DamageError, naming the file, unless the folder is as `seal` left it, the file `but` aside; sizes only
    without `content`."""
    listing = folder / CHECKSUMS
    try:
        if not listing.is_file():
            raise DamageError(f"{listing}: missing, so that nothing here can be trusted")
        for name, (size, digest) in _entries(listing).items():
            file = folder / name
            if name == but:
                continue
            if not file.is_file():
                raise DamageError(f"{file}: missing")
            if file.stat().st_size != size:
                raise DamageError(f"{file}: damaged ({file.stat().st_size:,} bytes instead of {size:,})")
            if content and checksum(file) != digest:
                raise DamageError(f"{file}: damaged (its checksum has changed)")
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


def usable(folder: Path) -> bool:
    """Whether a cached folder is there and whole. A damaged one is removed and named, for the caller to make anew."""
    if not folder.exists():
        return False
    try:
        verify(folder)
    except DamageError as damage:
        say(f"{damage}: making {folder.name} anew")
        discard(folder)
        return False
    return True


def discard(folder: Path) -> None:
    """Delete a directory, or what stands in its place, that others may be looking for: it is gone at once."""
    aside = _aside_name(folder)
    with suppress(FileNotFoundError):
        folder.rename(aside)
    _remove(aside)


def sweep(folder: Path) -> None:
    """Remove what processes that are no more left half written in this folder."""
    for path in folder.glob(".*.tmp"):
        if path.is_symlink():
            if time.time() - path.lstat().st_mtime > LINK_SECONDS:
                path.unlink(missing_ok=True)
        elif (lock := try_lock(path)) is not None:
            _remove(path)
            unlock(lock)


def try_lock(path: Path) -> int | None:
    """Lock a file or directory until this process ends or unlocks it; None where another one has it, or it is gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == path.stat().st_ino:
            _held.add(lock)
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def unlock(lock: int) -> None:
    _held.discard(lock)
    os.close(lock)


def point_latest(link: Path, target: Path) -> None:
    """Make the symbolic link `link` point at `target`, replacing it in one step."""
    aside = _aside_name(link)
    aside.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    aside.replace(link)


def _aside_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def _aside(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new, locked temporary file or directory, removed at the end if it is still there under its name."""
    lock = None
    while lock is None:  # another process's sweep can take it before it is locked
        aside = _aside_name(path)
        make(aside)
        lock = try_lock(aside)
    try:
        yield aside
    finally:
        _remove(aside)
        unlock(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _rename(aside: Path, path: Path) -> None:
    try:
        aside.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
