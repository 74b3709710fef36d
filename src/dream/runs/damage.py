"""Reads files that may be damaged: damage is logged, and is no error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dream.utils.cached_folders import verify
from dream.utils.errors import DamageError
from dream.utils.logging import get_logger

log = get_logger(__name__)


def read_or_report(read: Callable[[Path], Any], path: Path) -> Any:
    """Return the content; if the file is damaged, log it and return None."""
    try:
        return read(path)
    except DamageError as damage:
        log.warning(str(damage))
        return None


def is_whole(path: Path, check: Callable[[Path], None] = verify) -> bool:
    """Whether the check raises no DamageError. Damage is logged."""

    def checked(path: Path) -> bool:
        check(path)
        return True

    return read_or_report(checked, path) is True
