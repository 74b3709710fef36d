"""Documents that are records with named fields, wherever the records come from, with optional labels in files."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.corpora.base import Document, Labels, TextSettings, existing_path
from dream.corpora.labels import read_labels
from dream.corpora.lines import too_long
from dream.corpora.readers import Fields, Records, find_field
from dream.corpora.readers.records import ID_NAMES, MISSING, field_names
from dream.corpora.values import can_name, valid
from dream.utils.errors import ConfigError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)


class RecordCorpus(TextSettings):
    """Each record is a document. The non-empty `text_fields`, joined by a newline, are the document's text.

    A subclass sets `file` and defines `records`, `fingerprint` and `size_bytes`.

    Args:
        name: Shown in messages; also the first part of the store's name.
        id_field: Field of the id, which labels refer to. Without it, a record's number is its id.
        title_field: Field of the title.
        text_fields: `a.b` is field b of the object in field a. A list of texts is joined by newlines.
        deduplicate: Keep one copy of equal texts.
        queries: File of queries.
        qrels: File of relevance grades by split.
        on_bad_document: See `BadDocumentPolicy`.
        max_document_mb: A document longer than this is a bad document, in MB.
        language: Language of the text, for BM25: see `known_language`.

    Raises:
        ConfigError: A path or value is not usable.
    """

    file: str  # where the records are, for messages

    def __init__(
        self,
        name: str,
        id_field: str,
        title_field: str,
        text_fields: list[str],
        deduplicate: bool,
        queries: str | None,
        qrels: dict[str, str] | None,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
        language: str | None,
    ) -> None:
        super().__init__(name, deduplicate, on_bad_document, max_document_mb, language)
        require(bool(text_fields), "corpus.text_fields", list(text_fields), "name at least one field, e.g. [text]")
        self.id_field, self.title_field, self.text_fields = id_field, title_field, list(text_fields)
        remedy = "name the right ones with corpus.text_fields=[...]"
        self.fields = Fields((id_field,), tuple(text_fields), (title_field,), remedy)
        self.qrels_paths = {
            split: existing_path(f"corpus.qrels.{split}", file, "file") for split, file in (qrels or {}).items()
        }
        self.queries_path = existing_path("corpus.queries", queries, "file") if self.qrels_paths else None
        self._warned = False

    def records(self) -> Records:
        """Yield (number, record or bad document). The number is that of the line or row in `file`, from 1."""
        raise NotImplementedError

    def content(self) -> dict[str, Any]:
        """The part of the fingerprint that does not depend on where the records come from."""
        return {
            "fields": [self.id_field, self.title_field, *self.text_fields],
            "policy": [self.on_bad_document, self.most_bytes],
        }

    def documents(self, handle: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        handle = handle or BadDocumentPolicy(self.on_bad_document).handle
        for number, record in self.records():
            try:
                if isinstance(record, BadDocument):
                    raise record
                document = self._document(self.file, number, record)
            except BadDocument as bad:
                handle(bad)
            else:
                yield document

    def _document(self, file: str, number: int, record: dict[str, Any]) -> Document:
        text = self._text(file, number, record)
        name, title = find_field(record, self.id_field), find_field(record, self.title_field)
        if name is MISSING:
            self._report_missing_id(file, number, record)
        for field, value in ((self.id_field, name), (self.title_field, title)):
            if value is not None and value is not MISSING and not can_name(value):
                raise BadDocument(file, number, "field not text",
                                  f"field {field!r} is {type(value).__name__}, not text or a number")  # fmt: skip
        name = number if name in (None, "", MISSING) else name
        title = "" if title in (None, MISSING) else title
        return Document(valid(str(name)), valid(str(title)), text, file, number)

    def _text(self, file: str, number: int, record: dict[str, Any]) -> str:
        values = {field: find_field(record, field) for field in self.text_fields}
        if all(value is MISSING for value in values.values()):
            raise BadDocument(file, number, "no text field", f"none of the fields {self.text_fields} is there, only "
                              f"{field_names(record)}; {self.fields.remedy}")  # fmt: skip
        parts = [_part(file, number, field, value) for field, value in values.items()]
        text = valid("\n".join(filter(None, parts)))
        if 4 * len(text) > self.most_bytes and len(text.encode()) > self.most_bytes:
            raise too_long(file, number, self.most_bytes)
        return text

    def _report_missing_id(self, file: str, number: int, record: dict[str, Any]) -> None:
        """Stop if labels need the ids and another field looks like them; otherwise warn once."""
        similar = next((field for field in ID_NAMES if field in record), None)
        if self.qrels_paths and similar:
            raise ConfigError("corpus.id_field", self.id_field, f"{file}:{number} has no such field, but {similar!r} "
                              f"looks like the id that the labels refer to; set corpus.id_field={similar}")  # fmt: skip
        if not self._warned:
            self._warned = True
            hint = f"; for the ids in {similar!r}, set corpus.id_field={similar}" if similar else ""
            log.warning(f"{file}:{number} has no field {self.id_field!r}: such documents are named by their number in "
                        f"the file{', which labels must use' if self.qrels_paths else ''}{hint}")  # fmt: skip

    def splits(self) -> list[str]:
        return list(self.qrels_paths)

    def labels(self, split: str) -> Labels:
        if split not in self.qrels_paths or self.queries_path is None:
            raise ConfigError("split", split, f"corpus {self.name} has the splits {self.splits() or 'none'}")
        return read_labels(self.queries_path, self.qrels_paths[split])


def _part(file: str, number: int, field: str, value: Any) -> str:
    """One text field as text; empty if it is missing."""
    if value is None or value is MISSING:
        return ""
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if not isinstance(part, str):
            kind = f"a list with {type(part).__name__}" if isinstance(value, list) else type(value).__name__
            raise BadDocument(file, number, "field not text", f"field {field!r} is {kind}, not text or a list of texts")
    return "\n".join(filter(None, (part.strip() for part in parts)))
