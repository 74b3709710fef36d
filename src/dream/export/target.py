"""The folder of an export: written under a temporary name, and renamed when it is complete and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dream.utils.atomic_io import flush_to_disk, temporary
from dream.utils.cached_folders import discard, remove_leftovers
from dream.utils.errors import ConfigError

ABOUT = "dream_export.json"  # in every export: what it is, and how it was checked


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise ConfigError if the path exists, unless it may be overwritten and is an earlier export."""
    if not path.exists():
        return
    if not overwrite:
        raise ConfigError("path", path, "exists; choose another folder, or overwrite=true")
    if not (path / ABOUT).is_file():
        raise ConfigError("path", path, "is no earlier export, so it is not overwritten; choose another folder")


@contextmanager
def new_export(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`. It replaces `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with temporary(path, Path.mkdir) as unfinished:
        yield unfinished
        for file in unfinished.rglob("*"):
            if file.is_file():
                flush_to_disk(file)
        if path.exists():
            discard(path)
        unfinished.rename(path)
        flush_to_disk(path.parent)
