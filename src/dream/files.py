"""Content hashes, and directories that exist whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FINGERPRINT_CHARACTERS = 12


def fingerprint(description: Any) -> str:
    """Short hash of a JSON-able description: equal descriptions, equal names."""
    canonical = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(canonical.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


def file_fingerprint(path: Path) -> str:
    """Short hash of a file's bytes, read in pieces (about 1 s per GB)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:FINGERPRINT_CHARACTERS]


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside, then rename over `path`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    aside.replace(path)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`, renamed to it when the block ends without an error.

    If another process completed the same directory first, its copy is kept: names are hashes of the content, so both
    are equal.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        try:
            aside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def point_latest(link: Path, target: Path) -> None:
    """Make the symbolic link `link` point at `target`, replacing it in one step."""
    aside = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    aside.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    aside.replace(link)
