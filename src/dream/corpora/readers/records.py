"""Definitions shared by all readers: the records that they yield, and the names of the fields to look for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dream.corpora.bad_documents import BadDocument
from dream.utils.errors import DataError

# (number, record). The number is the line from 1; for Parquet the row, for a JSON array the element. If a record cannot
# be read, the error is yielded in its place, and the caller decides whether to continue.
Records = Iterator[tuple[int, dict[str, Any] | BadDocument]]

MISSING = object()
# Names that other tools give to a document's id.
ID_NAMES = ("_id", "id", "docid", "doc_id", "pid", "docno", "document_id", "passage_id", "corpus-id", "corpus_id")
MOST_NAMES = 8  # fields of a record that a message names
MOST_CHARACTERS = 40  # of a column's name that a message quotes


@dataclass(frozen=True)
class Fields:
    """Names of the fields to read. `a.b` is field b of the object in field a, unless there is a field named `a.b`.

    Args:
        ids: Names of the id. The first is used for a table without a header.
        texts: Names of the text.
        others: Other fields to read.
        remedy: For messages: how to name the right fields.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    others: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all fields."""
        return (*self.ids, *self.texts, *self.others)

    def require_text(self, file: str, columns: list[str]) -> None:
        """Check the columns of a table, which are known before the first row.

        Raises:
            DataError: No column can hold the text.
        """
        if not any(name in columns or name.split(".")[0] in columns for name in self.texts):
            found = [name[:MOST_CHARACTERS] for name in columns[:MOST_NAMES]]  # without a header, these are texts
            raise DataError(f"{file}: none of the columns {list(self.texts)} is there, only {found}; {self.remedy}")


def field_names(record: dict[str, Any]) -> list[str]:
    """The record's fields for a message; fields of nested objects are written a.b."""
    names = []
    for name, value in record.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) and value else [name]
    return sorted(names)[:MOST_NAMES]


def find_field(record: dict[str, Any], name: str) -> Any:
    """The value of a field, which may be nested; MISSING if the record does not have it."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value
