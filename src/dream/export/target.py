"""The folder of an export may replace an earlier export, and nothing else."""

from pathlib import Path

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
