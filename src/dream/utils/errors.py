"""Errors that the user can fix. They are reported in one line without a traceback."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any


class DreamError(Exception):
    """A mistake that the user can fix. The message is one line: what is wrong, and how to fix it."""


class ConfigError(DreamError):
    """A config value that is not allowed. The message names the key, the value and the remedy."""

    def __init__(self, key: str, value: Any, remedy: str) -> None:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value  # as in YAML
        super().__init__(f"{key}={shown}: {remedy}")


class DataError(DreamError):
    """Input that cannot be read. The message names the file, the line if known, and the remedy."""


class DamageError(DataError):
    """A file written by this project is truncated, changed or missing. The message names the file."""


class NumericalError(DreamError):
    """A value in training is inf or nan. The message names the key to change, its value and the report."""


def user_error(error: BaseException | None) -> DreamError | None:
    """The DreamError that caused this error, if one did. Hydra and Lightning wrap errors into their own."""
    while error is not None and not isinstance(error, DreamError):
        error = error.__cause__ or error.__context__
    return error


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, for a message of one line; its class if it has no text."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def require(holds: bool, key: str, value: Any, remedy: str) -> None:
    """Raise `ConfigError` if the condition is false."""
    if not holds:
        raise ConfigError(key, value, remedy)


def require_count(key: str, value: Any) -> None:
    """Raise `ConfigError` if the value is neither null nor a whole number above 0. Text cannot be compared with 0."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    require(value is None or is_count, key, value, "null, or a whole number, at least 1")


def require_installed(packages: Iterable[str], extra: str, key: str, value: Any) -> None:
    """Raise `ConfigError` if an importable package is missing that this extra of the project installs."""
    for package in packages:
        require(find_spec(package) is not None, key, value,
                f"needs the package {package}: pip install 'dream-retrieval[{extra}]'")  # fmt: skip
