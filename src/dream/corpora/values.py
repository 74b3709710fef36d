"""Values of fields as text."""

from typing import Any


def can_name(value: Any) -> bool:
    """Whether a value can be an id, a title or a grade: text, or a number, which is written out."""
    return type(value) in (str, int, float)


def valid(text: str) -> str:
    """Replace lone surrogates, which JSON can spell and UTF-8 cannot, by question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
