"""Reads a JSON file that is one array of objects, element by element. The whole array is never in memory."""

import re
from collections.abc import Iterator

from dream.corpora.bad_documents import BadDocument
from dream.corpora.lines import BYTE_ORDER_MARK
from dream.corpora.readers.jsonl import json_object
from dream.corpora.readers.records import Fields, Records
from dream.corpora.source_file import SourceFile
from dream.utils.errors import DataError

_OUTSIDE = re.compile(rb'["{}\[\],]')  # the bytes to look for outside of a string
_STRING = re.compile(rb'(?s)(?:[^"\\]++|\\.)*+')  # the rest of a string, without its last quote
_SPACE = b" \t\r\n"


def read_json_array(source: SourceFile, fields: Fields, most_bytes: int) -> Records:
    """Yield each element with its number from 1. Line numbers would not help: an array may be a single line."""
    file = str(source.path)
    for number, element in source.numbered(_ArraySplitter(file, most_bytes).split(source.blocks()), "elements"):
        try:
            yield number, json_object(file, number, element, most_bytes)
        except BadDocument as bad:
            yield number, bad


class _ArraySplitter:
    """Finds the commas between the elements by counting brackets outside of strings, in one pass over the bytes."""

    def __init__(self, file: str, most_bytes: int) -> None:
        self.file, self.most_bytes = file, most_bytes
        self.depth = 0  # open brackets, including that of the array
        self.in_string = self.ended = False
        self.elements = 0
        self.parts: list[bytes] = []
        self.size = 0

    def split(self, blocks: Iterator[bytes]) -> Iterator[bytes | None]:
        """Yield the bytes of each element; None for an element longer than `most_bytes`."""
        skip = 0  # bytes at the start of a block that follow a backslash
        for number, block in enumerate(blocks):
            block = block.removeprefix(BYTE_ORDER_MARK) if number == 0 else block
            begin, position, skip = 0, skip, 0
            while True:
                if self.in_string:
                    position = _STRING.match(block, position).end()  # type: ignore[union-attr]  # it matches b"" too
                    if block[position : position + 1] != b'"':  # the string continues in the next block
                        skip = len(block) - position  # 1 after a backslash: the next block begins with the escaped byte
                        break
                    self.in_string, position = False, position + 1
                if not (match := _OUTSIDE.search(block, position)):
                    break
                position, token = match.end(), match.group()
                if token == b'"':
                    self.in_string = True
                elif self._separates(token):
                    if token != b"[":
                        self._keep(block[begin : match.start()])
                        yield from self._element(last=self.ended)
                    begin = position
            self._keep(block[begin:])
            if self.ended:
                self._require_blank()
        if not self.ended:
            raise DataError(f"{self.file}:{self.elements + 1}: the JSON array does not end: the file was cut off after "
                            f"{self.elements:,} whole elements, or a bracket or quote is missing; fetch or write it "
                            "again")  # fmt: skip

    def _separates(self, token: bytes) -> bool:
        """Count the bracket. Return True for the array's own brackets and for commas between elements."""
        if self.ended:
            return False
        if token in (b"{", b"["):
            self.depth += 1
            return self.depth == 1
        if token == b",":
            return self.depth == 1
        self.depth -= 1
        self.ended = self.depth == 0
        return self.ended

    def _keep(self, part: bytes) -> None:
        if not self.parts:
            part = part.lstrip(_SPACE)
        self.size += len(part)
        if part and self.size <= self.most_bytes:
            self.parts.append(part)

    def _element(self, last: bool) -> Iterator[bytes | None]:
        element = b"".join(self.parts).rstrip(_SPACE) if self.size <= self.most_bytes else None
        self.parts, self.size = [], 0
        if element or element is None or not last or self.elements:  # [] has no element
            self.elements += 1
            yield element

    def _require_blank(self) -> None:
        if self.size:
            raise DataError(f"{self.file}:{self.elements}: more text follows the end of the JSON array, after element "
                            f"{self.elements:,}; for one object a line, name the file .jsonl")  # fmt: skip
