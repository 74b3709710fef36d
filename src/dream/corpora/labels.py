"""Reads labelled queries and relevance grades. There is no policy for bad records: the first one is an error."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dream.corpora.bad_documents import BadDocument
from dream.corpora.base import Labels
from dream.corpora.lines import decoded
from dream.corpora.readers import Fields, find_field, read_records
from dream.corpora.readers.delimited import csv_rows
from dream.corpora.readers.formats import format_by_content
from dream.corpora.readers.records import MISSING, MOST_NAMES
from dream.corpora.source_file import SourceFile
from dream.corpora.values import can_name, valid
from dream.utils.errors import DataError
from dream.utils.logging import get_logger

log = get_logger(__name__)

HIGHEST_GRADE = 1000
MOST_BYTES = 100_000_000  # maximum size of one query or label
# Names of the fields, the usual one first.
QUERY = Fields(
    ids=("_id", "id", "query-id", "query_id", "qid"),
    texts=("text", "query", "question"),
    remedy="a query needs the fields _id and text",
)
QREL_FIELDS = (
    ("query-id", "query_id", "qid"),
    ("corpus-id", "corpus_id", "doc_id", "docid", "docno", "pid"),
    ("score", "relevance", "label", "grade", "rel"),
)
QREL = Fields(ids=QREL_FIELDS[1], texts=QREL_FIELDS[0], others=QREL_FIELDS[2], remedy="see BEIR's qrels")


def read_labels(queries: Path, qrels: Path) -> Labels:
    """Queries and grades of one split.

    Args:
        queries: JSON lines or array, CSV, Parquet, or TSV with or without a header.
        qrels: Lines of query-id, corpus-id and grade (BEIR) or of query-id, 0, corpus-id and grade (TREC), with or
            without a header. Separators are tabs, blanks or commas. A header may name the columns in another order,
            among others. JSON and Parquet with the same fields are also accepted.

    Raises:
        DataError: A line cannot be read, two lines contradict each other, or a query has no text.
    """
    grades = read_qrels(qrels)
    texts = read_queries(queries, set(grades))
    missing = [query for query in grades if query not in texts]
    if missing:
        raise DataError(f"{qrels}: {len(missing)} queries are not in {queries}, the first is {missing[0]!r}")
    _report(queries, qrels, grades)
    return Labels(texts, grades)


@cache  # a run reads the same labels several times
def _report_once(message: str) -> None:
    log.info(message)


def _report(queries: Path, qrels: Path, grades: dict[str, dict[str, int]]) -> None:
    """Write one line that says what was read, and in which formats."""
    count = sum(map(len, grades.values()))
    files = [f"{file.name} ({format_by_content(SourceFile(file))})" for file in (qrels, queries)]
    _report_once(f"Labels: {count:,} grades of {len(grades):,} queries from {files[0]} and {files[1]}")


def read_queries(path: Path, wanted: set[str]) -> dict[str, str]:
    """Texts of the wanted queries by id."""
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, record in _good_records(path, QUERY, format_by_content(SourceFile(path))):
        name, text = _first(record, QUERY.ids), _first(record, QUERY.texts)
        if not can_name(name) or not isinstance(text, str):
            raise DataError(f"{path}:{number}: a query needs the fields _id and text, both of them text; this line has "
                            f"{_described(record)}")  # fmt: skip
        query = str(name)
        if query not in wanted:
            continue
        if not text.strip():
            raise DataError(f"{path}:{number}: the text of query {query!r} is empty; remove its labels, or write it")
        if texts.setdefault(query, valid(text)) != valid(text):
            raise DataError(f"{path}:{number}: query {query!r} has another text in line {lines[query]}; keep one")
        lines.setdefault(query, number)
    return texts


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grades by query id and document id."""
    qrels: dict[str, dict[str, int]] = {}
    for number, query, document, written in _qrel_rows(path, format_by_content(SourceFile(path))):
        grade = _grade(written)
        if grade is None:
            found = f"{query} {document} {written}"[:80]
            raise _expected(path, number, found)
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise DataError(f"{path}:{number}: query {query!r} and document {document!r} have grade {grade} here "
                            f"and {qrels[query][document]} in a line before; keep one")  # fmt: skip
    if not qrels:
        raise DataError(f"{path}: this file of labels has no line with a label")
    return qrels


def _qrel_rows(path: Path, form: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, query id, document id, grade as text)"""
    if form not in ("csv", "tsv"):
        for number, record in _good_records(path, QREL, form):
            cells = [_first(record, names) for names in QREL_FIELDS]
            if not all(map(can_name, cells)):
                raise DataError(f"{path}:{number}: a label needs the fields query-id, corpus-id and score; this line "
                                f"has {_described(record)}")  # fmt: skip
            yield number, str(cells[0]), str(cells[1]), str(cells[2])
        return
    rows = _csv_cells(path) if form == "csv" else _tsv_cells(path)
    places: tuple[int, ...] | None = None
    for row, (number, cells) in enumerate(rows):
        if row == 0 and (places := _named_columns(cells)):
            continue
        if row == 0 and len(cells) in (3, 4) and not _is_number(cells[-1]):
            continue  # a header with other names
        if places and len(cells) > max(places):
            yield number, cells[places[0]], cells[places[1]], cells[places[2]]
        elif not places and len(cells) in (3, 4):
            yield number, cells[0], cells[-2], cells[-1]
        else:
            raise _expected(path, number, " ".join(cells)[:80])


def _named_columns(header: list[str]) -> tuple[int, ...] | None:
    """Places of query id, document id and grade in a header that names them; otherwise None."""
    columns = [cell.strip().strip('"').lower() for cell in header]
    places = [next((columns.index(name) for name in names if name in columns), None) for names in QREL_FIELDS]
    return tuple(place for place in places if place is not None) if None not in places else None


def _tsv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in SourceFile(path).lines(MOST_BYTES):
        text = decoded(str(path), number, line, MOST_BYTES)
        if text.strip():
            yield number, text.split("\t") if "\t" in text else text.split()


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    source = SourceFile(path)
    first = next(iter(source.head().splitlines()), b"")
    delimiter = ";" if first.count(b";") > first.count(b",") else ","
    for number, row in csv_rows(source, MOST_BYTES, delimiter):
        if isinstance(row, BadDocument):
            raise row
        yield number, row


def _good_records(path: Path, fields: Fields, form: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, record in read_records(SourceFile(path), fields, MOST_BYTES, form):
        if isinstance(record, BadDocument):
            raise record
        yield number, record


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of these fields that the record has; None if it has none of them."""
    values = (find_field(record, name) for name in names)
    return next((value for value in values if value is not MISSING), None)


def _described(record: dict[str, Any]) -> str:
    fields = list(record.items())[:MOST_NAMES]
    return ", ".join(f"{field!r} ({type(value).__name__})" for field, value in fields) or "no field"


def _expected(path: Path, number: int, found: str) -> DataError:
    return DataError(f"{path}:{number}: expected query-id, corpus-id and an integer up to {HIGHEST_GRADE}, separated "
                     f"by tabs; found {found!r}")  # fmt: skip


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _grade(cell: str) -> int | None:
    """The grade, an integer between -1000 and 1000; 1.0 is accepted as 1. None for other text."""
    whole = _is_number(cell) and float(cell).is_integer() and abs(float(cell)) <= HIGHEST_GRADE
    return int(float(cell)) if whole else None
