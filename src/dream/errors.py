"""Mistakes of the user, told in one line without a traceback."""

from typing import Any


class DreamError(Exception):
    """Something the user can mend: the message says what and how, on one line."""


class ConfigError(DreamError):
    """A config value that cannot work. Names the key, the value and what is allowed."""

    def __init__(self, key: str, value: Any, remedy: str) -> None:
        super().__init__(f"{key}={value}: {remedy}")


class DataError(DreamError):
    """Input that cannot be read. Names the file, the line where there is one, and the remedy."""


class DamageError(DataError):
    """A file that this project wrote is not what was written: cut short, changed or missing. Names the file."""


class NumericalError(DreamError):
    """Numbers that are not finite where training needs them. Names the key to change, the value and the file."""


def require(holds: bool, key: str, value: Any, remedy: str) -> None:
    """Raise `ConfigError` unless the condition holds."""
    if not holds:
        raise ConfigError(key, value, remedy)
