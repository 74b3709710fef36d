"""Finds ids that are used twice, with little memory."""

import hashlib
from array import array

from dream.corpora.bad_documents import BadDocument
from dream.corpora.base import Document


class DocumentIds:
    """Stores the first document with each id, in about 150 bytes per document.

    It compares 64-bit hashes. The probability that two of 10 million different ids have the same hash is 1 in 370,000.
    """

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.rows, self.lines, self.files = array("q"), array("q"), array("i")
        self.file_numbers: dict[str, int] = {}

    def check(self, document: Document, row: int) -> None:
        """Store the id of this row.

        Raises:
            BadDocument: Another row has the same id.
        """
        key = text_hash(document.id)
        number = self.numbers.setdefault(key, len(self.rows))
        if number == len(self.rows):
            self.rows.append(row)
            self.lines.append(document.line)
            self.files.append(self.file_numbers.setdefault(document.file, len(self.file_numbers)))
        elif self.rows[number] != row:
            file = list(self.file_numbers)[self.files[number]]
            first = f"{file}:{self.lines[number]}" if file else "another document"
            raise BadDocument(document.file, document.line, "id used twice",
                              f"{first} already has the id {document.id!r}; give each text its own")  # fmt: skip


def text_hash(text: str) -> int:
    """A 64-bit hash of the text, equal in all processes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
