"""Reads CSV with a header, and TSV with a header or as lines of id, tab, text (like MS MARCO's collection.tsv)."""

import csv
from collections.abc import Iterator
from typing import Any

from dream.corpora.bad_documents import BadDocument
from dream.corpora.lines import decoded, too_long
from dream.corpora.readers.records import ID_NAMES, Fields, Records
from dream.corpora.source_file import SourceFile
from dream.utils.errors import DataError
from dream.utils.logging import get_logger

log = get_logger(__name__)

Rows = Iterator[tuple[int, list[str] | BadDocument]]

DELIMITERS = (",", ";", "\t")  # spreadsheets of some countries write semicolons
PLAIN_TEXT = "text"  # the text field of a table without a header


def read_csv(source: SourceFile, fields: Fields, most_bytes: int) -> Records:
    """Yield each row as a record. A quoted cell may span several lines; the row's number is its first line."""
    rows = csv_rows(source, most_bytes, _delimiter(source, fields))
    header = next(rows, None)
    if header is not None:
        yield from _records(str(source.path), rows, _header(source, header[1], fields))


def read_tsv(source: SourceFile, fields: Fields, most_bytes: int) -> Records:
    """Yield each line as a record.

    With a header, cells may be quoted, as in DPR's psgs_w100.tsv. Without a header, quotes are text, as in MS MARCO.
    """
    _allow_cells(most_bytes)
    rows = _tsv_rows(source, most_bytes)
    number, first = next(rows, (0, []))
    if isinstance(first, BadDocument):
        raise first
    if not first:
        return
    names = [_unquoted(cell.strip()) for cell in first]
    if len(first) == 2 and PLAIN_TEXT in fields.texts and not {*fields.names, *ID_NAMES}.intersection(names):
        log.info(f"{source.path}: line 1 names no known column, so the columns are read as id and text")
        yield number, {fields.ids[0]: first[0], PLAIN_TEXT: first[1]}
        for number, row in rows:
            yield number, row if isinstance(row, BadDocument) else _pair(str(source.path), number, row, fields)
        return
    header = _header(source, names, fields)
    yield from _records(str(source.path), ((n, _cells(row, len(header))) for n, row in rows), header)


def csv_rows(source: SourceFile, most_bytes: int, delimiter: str = ",") -> Rows:
    """Yield (first line from 1, cells) of each row that is not blank."""
    _allow_cells(most_bytes)
    lines = _RowLines(source, most_bytes)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            detail = (
                f"not valid CSV ({error}); a cell with quotes, line ends or {delimiter!r} must be quoted as a whole"
            )
            bad = lines.bad or BadDocument(str(source.path), lines.first, "not CSV", detail)
            yield bad.line, bad
        else:
            if lines.bad:
                yield lines.bad.line, lines.bad
            elif any(cell.strip() for cell in row):
                yield lines.first, row


def _allow_cells(most_bytes: int) -> None:
    """Let the csv module read cells of this length. Its limit is one for the whole process."""
    csv.field_size_limit(max(csv.field_size_limit(), most_bytes))


class _RowLines:
    """Gives `csv.reader` the lines. A line that is not UTF-8, or a row longer than `most_bytes`, is kept as `bad`.

    The reader gets something in its place, because only its quotes show where the row ends.
    """

    bad: BadDocument | None

    def __init__(self, source: SourceFile, most_bytes: int) -> None:
        self.file, self.lines, self.most_bytes = str(source.path), source.lines(most_bytes), most_bytes
        self.begin_row()

    def begin_row(self) -> None:
        self.first, self.size, self.bad = 0, 0, None

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        number, line = next(self.lines)
        self.first = self.first or number
        self.size += len(line or b"") + 1
        if self.size > self.most_bytes:
            self.bad = self.bad or too_long(self.file, self.first, self.most_bytes)
            return '"' * (line or b"").count(b'"') + "\n"  # the whole row would fill the memory
        try:
            return decoded(self.file, number, line, self.most_bytes) + "\n"
        except BadDocument as bad:
            self.bad = self.bad or bad
            return (line or b"").decode("utf-8", "replace") + "\n"


def _tsv_rows(source: SourceFile, most_bytes: int) -> Rows:
    for number, line in source.lines(most_bytes):
        if line is not None and not line.strip():
            continue
        try:
            yield number, decoded(str(source.path), number, line, most_bytes).split("\t")
        except BadDocument as bad:
            yield number, bad


def _delimiter(source: SourceFile, fields: Fields) -> str:
    """The delimiter that separates a known column from the others in the first line."""
    line = source.head().splitlines()[:1]
    text = line[0].decode("utf-8-sig", "replace") if line else ""
    for delimiter in DELIMITERS:
        cells = {cell.strip().strip('"') for cell in text.split(delimiter)}
        if cells.intersection(fields.names):
            return delimiter
    return DELIMITERS[0]


def _header(source: SourceFile, row: list[str] | BadDocument, fields: Fields) -> list[str]:
    if isinstance(row, BadDocument):
        raise row
    columns = [cell.strip() for cell in row]
    fields.require_text(f"{source.path}:1", columns)
    twice = [name for name in fields.names if columns.count(name) > 1]
    if twice:
        raise DataError(f"{source.path}:1: two columns have the name {twice[0]!r}; rename one")
    return columns


def _records(file: str, rows: Rows, header: list[str]) -> Records:
    for number, row in rows:
        if isinstance(row, BadDocument):
            yield number, row
        elif len(row) != len(header):
            detail = f"{len(row)} cells, but the header in line 1 has {len(header)} columns"
            yield number, BadDocument(file, number, "other number of cells", detail)
        else:
            record: dict[str, Any] = dict(zip(header, row, strict=True))
            yield number, record


def _pair(file: str, number: int, row: list[str], fields: Fields) -> dict[str, Any] | BadDocument:
    """The record of a line of a table without a header. Tabs after the first tab belong to the text."""
    if len(row) < 2:
        return BadDocument(file, number, "other number of cells", "no tab, but line 1 is an id, a tab and a text")
    return {fields.ids[0]: row[0], PLAIN_TEXT: "\t".join(row[1:])}


def _cells(row: list[str] | BadDocument, count: int) -> list[str] | BadDocument:
    """Cells of a line of a TSV with a header. Quotes are removed only if the line is quoted correctly."""
    if isinstance(row, BadDocument) or not any(cell.startswith('"') for cell in row):
        return row
    try:
        quoted = next(csv.reader(["\t".join(row)], delimiter="\t", strict=True))
    except csv.Error:
        return row
    return quoted if len(quoted) == count else row


def _unquoted(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
