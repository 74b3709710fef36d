"""Converts values of fields to text."""

from typing import Any


def can_name(value: Any) -> bool:
    """Whether a value can be an id, a title or a grade: text or a number."""
    return type(value) in (str, int, float)


def valid(text: str) -> str:
    """Replace lone surrogates by question marks. JSON can contain them as escapes, but UTF-8 cannot encode them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
