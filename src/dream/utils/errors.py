"""Mistakes of the user, reported in one line without a traceback."""

from typing import Any


class DreamError(Exception):
    """A mistake that the user can fix. The message is one line: what is wrong, and how to fix it."""


class ConfigError(DreamError):
    """A config value that cannot work. Names the key, the value and what is allowed."""

    def __init__(self, key: str, value: Any, remedy: str) -> None:
        super().__init__(f"{key}={value}: {remedy}")


class DataError(DreamError):
    """Input that cannot be read. Names the file, its line if there is one, and the remedy."""


class DamageError(DataError):
    """A file of this project that is cut short, changed or missing. Names the file."""


class NumericalError(DreamError):
    """Numbers are not finite where training needs them. Names the key to change, its value and the report."""


def require(holds: bool, key: str, value: Any, remedy: str) -> None:
    """Raise `ConfigError` unless the condition holds."""
    if not holds:
        raise ConfigError(key, value, remedy)
