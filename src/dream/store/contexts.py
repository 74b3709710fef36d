"""Finds the texts that stand for queries: titles, sentences and headings. Ranges are (first character, end).

`cut.py` cuts the other kinds of contexts, `span` and `beginning`, by tokens only.
"""

import re
from collections.abc import Iterator

from dream.corpora.base import Document

CONTEXTS = ("span", "beginning", "title", "sentence", "heading")
OPENINGS = ("beginning", "title")  # kinds with at most one window in a document, whose context starts the document

# A full stop in Latin script ends a sentence if white space and then no lower-case letter follow.
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+[^\sa-z])|[。！？]+[」』”’）]*|\n\s*\n")
SHORT_LINE = 80  # characters of the longest line that can be a heading without markup
PARAGRAPH = 40  # characters of the shortest line that can start the paragraph below such a heading
MARKDOWN = re.compile(r" {0,3}#{1,6}[ \t]+(?P<heading>.*?)[ \t]*#*")
UNDERLINE = re.compile(r"([=\-~^\"'*+#`.])\1{2,}")
NO_HEADING = re.compile(r"[-*+•>|]|\d+[.)]|```|\.\.|:")  # starts of list items, tables, code and directives


def title_ranges(document: Document) -> list[tuple[int, int]]:
    """The title, if the document's text starts with it and continues after white space. Otherwise empty."""
    title, text = document.title.strip(), document.text
    start = len(text) - len(text.lstrip())
    end = start + len(title)
    found = title and text.startswith(title, start) and text[end : end + 1].isspace()
    return [(start, end)] if found else []


def sentence_ranges(document: Document) -> list[tuple[int, int]]:
    """All sentences of the text, without the white space around them. Punctuation and empty lines end a sentence."""
    text, ranges, start = document.text, [], 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]:
        sentence = text[start:end]
        if stripped := sentence.strip():
            first = start + len(sentence) - len(sentence.lstrip())
            ranges.append((first, first + len(stripped)))
        start = end
    return ranges


def heading_ranges(document: Document) -> list[tuple[int, int]]:
    """Headings, without markup: Markdown's `# …`, underlined lines, and short lines above a paragraph.

    A short line counts if it starts a block, does not end with punctuation, and the next line of text is longer and has
    at least `PARAGRAPH` characters.
    """
    lines, ranges = list(_lines(document.text)), []
    for number, (start, line) in enumerate(lines):
        if markdown := MARKDOWN.fullmatch(line):
            if markdown["heading"]:
                ranges.append((start + markdown.start("heading"), start + markdown.end("heading")))
        elif _is_underlined(lines, number) or _is_short_heading(lines, number):
            indent = len(line) - len(line.lstrip())
            ranges.append((start + indent, start + len(line.rstrip())))
    return ranges


RANGES = {"title": title_ranges, "sentence": sentence_ranges, "heading": heading_ranges}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(first character of the line, the line without its line break)"""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _is_underlined(lines: list[tuple[int, str]], number: int) -> bool:
    """Whether the next line consists of one repeated sign and is not shorter, as below a heading in RST."""
    line = lines[number][1].strip()
    below = lines[number + 1][1].strip() if number + 1 < len(lines) else ""
    return bool(re.search(r"\w", line) and UNDERLINE.fullmatch(below) and len(below) >= len(line) - 1)


def _is_short_heading(lines: list[tuple[int, str]], number: int) -> bool:
    line = lines[number][1].strip()
    starts_block = number == 0 or not lines[number - 1][1].strip()
    if not starts_block or not 0 < len(line) <= SHORT_LINE or NO_HEADING.match(line):
        return False
    if not re.search(r"\w", line) or line[-1] in ".!?:;,。！？：；，":
        return False
    below = next((text.strip() for _, text in lines[number + 1 : number + 3] if text.strip()), "")
    return len(below) >= max(PARAGRAPH, len(line) + 1) and not NO_HEADING.match(below)
