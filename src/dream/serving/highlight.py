"""A short piece of a document around the words of the query, and the places of these words."""

import re
from typing import NamedTuple

from dream.indexes.words import Analyzer

WORD = re.compile(r"\w+")
CHARACTERS = 320  # length of a piece


class Part(NamedTuple):
    """A part of a text, and whether it is a word of the query."""

    text: str
    marked: bool


def snippet(text: str, query: str, analyzer: Analyzer, length: int = CHARACTERS) -> list[Part]:
    """The piece of `text` with the most words of the query, as parts. Words are equal if BM25 counts them as equal."""
    wanted = set(analyzer(query))
    text = " ".join(text.split())
    places = [match.span() for match in WORD.finditer(text) if wanted & set(analyzer(match[0]))]
    start, end = _best_window(text, places, length)
    parts, at = [Part("… ", False)] * (start > 0), start
    for first, last in places:
        if start <= first and last <= end:
            parts += [Part(text[at:first], False), Part(text[first:last], True)]
            at = last
    parts += [Part(text[at:end], False), *[Part(" …", False)] * (end < len(text))]
    return [part for part in parts if part.text]


def _best_window(text: str, places: list[tuple[int, int]], length: int) -> tuple[int, int]:
    """(start, end) of the window with the most places. It begins and ends at a blank."""
    if len(text) <= length:
        return 0, len(text)
    starts = [0, *(max(0, first - length // 6) for first, _ in places)]
    counted = [(sum(start <= first and last <= start + length for first, last in places), -start) for start in starts]
    start = -max(counted)[1]
    if start:
        start = text.find(" ", start) + 1 or start
    end = text.rfind(" ", start, start + length) if start + length < len(text) else len(text)
    return start, end if end > start else min(len(text), start + length)
