"""Documents with named fields: JSON lines, a JSON array, CSV, TSV or Parquet, with optional labels."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.corpora.base import Document, Labels, existing_path, known_language
from dream.corpora.compression import SUFFIXES as COMPRESSION_SUFFIXES
from dream.corpora.compression import without_compression_suffix
from dream.corpora.labels import read_labels
from dream.corpora.lines import too_long
from dream.corpora.readers import Fields, find_field, format_of, read_records
from dream.corpora.readers.formats import SUFFIXES
from dream.corpora.readers.jsonl import json_object
from dream.corpora.readers.records import ID_NAMES, MISSING, field_names
from dream.corpora.source_file import SourceFile
from dream.corpora.values import can_name, valid
from dream.utils.errors import ConfigError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)


class JsonlCorpus:
    """Each record is a document. The non-empty `text_fields`, joined by a newline, are the document's text.

    The format is recognised by the file's suffix: .jsonl, .json (JSON lines or one array), .csv, .tsv or .parquet. All
    formats except Parquet may be compressed (.gz, .bz2, .xz, .zst).

    Args:
        name: Shown in messages; also the first part of the store's name.
        path: The file.
        id_field: Field of the id, which labels refer to. Without it, a document's line number is its id.
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

    def __init__(
        self,
        name: str,
        path: str,
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
        self.name, self.language = name, known_language(language)
        self.path = existing_path("corpus.path", path, "file")
        require(bool(text_fields), "corpus.text_fields", list(text_fields), "name at least one field, e.g. [text]")
        self.id_field, self.title_field, self.text_fields = id_field, title_field, list(text_fields)
        require(max_document_mb > 0, "corpus.max_document_mb", max_document_mb, "more than 0 MB")
        self.deduplicate, self.most_bytes = deduplicate, int(max_document_mb * 1_000_000)
        self.on_bad_document = BadDocumentPolicy(on_bad_document).policy
        self.source = SourceFile(self.path)
        self.form = format_of(self.source)
        remedy = "name the right ones with corpus.text_fields=[...]"
        self.fields = Fields((id_field,), tuple(text_fields), (title_field,), remedy)
        self.qrels_paths = {
            split: existing_path(f"corpus.qrels.{split}", file, "file") for split, file in (qrels or {}).items()
        }
        self.queries_path = existing_path("corpus.queries", queries, "file") if self.qrels_paths else None
        self._warned = False

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": self.form,
            "content": self.source.fingerprint(),
            "fields": [self.id_field, self.title_field, *self.text_fields],
            "policy": [self.on_bad_document, self.most_bytes],
        }

    def size_bytes(self) -> int:
        return self.source.text_bytes()

    def documents(self, handle: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        handle = handle or BadDocumentPolicy(self.on_bad_document).handle
        for number, record in read_records(self.source, self.fields, self.most_bytes, self.form):
            try:
                if isinstance(record, BadDocument):
                    raise record
                document = self._document(str(self.path), number, record)
            except BadDocument as bad:
                handle(bad)
            else:
                yield document

    def sample(self, pieces: int, piece_bytes: int) -> tuple[list[Document], float] | None:
        """(documents from evenly spaced places of the file, their share of it); None if only reading from the start
        finds documents."""
        if self.form != "jsonl":
            return None
        documents, read = [], 0
        warned, self._warned = self._warned, True  # these lines have no numbers yet
        for line in self.source.lines_at(pieces, piece_bytes):
            read += len(line) + 1
            with suppress(BadDocument, ConfigError):  # reported when the corpus is read
                record = json_object(str(self.path), 0, line, self.most_bytes)
                document = self._document(str(self.path), 0, record)
                documents += [document] if document.text.strip() else []
        self._warned = warned
        return (documents, read / self.size_bytes()) if documents else None

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


class BeirCorpus(JsonlCorpus):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv. Text is the title, then the text.

    Each file may have another of the supported formats, and may be compressed. The arguments are those of JsonlCorpus.
    """

    def __init__(
        self,
        name: str,
        path: str,
        deduplicate: bool,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
        language: str | None,
    ) -> None:
        folder = existing_path("corpus.path", path, "folder")
        documents, queries = _files(folder).get("corpus"), _files(folder).get("queries")
        if documents is None:
            raise ConfigError("corpus.path", path, "this folder has no corpus.jsonl; BEIR's layout is expected")
        super().__init__(
            name=name,
            path=str(documents),
            id_field="_id",
            title_field="title",
            text_fields=["title", "text"],
            deduplicate=deduplicate,
            queries=str(queries or folder / "queries.jsonl"),
            qrels={split: str(file) for split, file in sorted(_files(folder / "qrels", first=".tsv").items())},
            on_bad_document=on_bad_document,
            max_document_mb=max_document_mb,
            language=language,
        )


def _files(folder: Path, first: str = ".jsonl") -> dict[str, Path]:
    """Files of known formats by name without suffixes. The format `first` has priority, then uncompressed files."""
    suffixes = [first, *(suffix for suffix in SUFFIXES if suffix != first)]
    packed = ["", *COMPRESSION_SUFFIXES]
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        plain = without_compression_suffix(file)
        if plain.suffix in suffixes and file.is_file():
            compression = "" if plain == file else file.suffix.lower()
            order = (suffixes.index(plain.suffix), packed.index(compression), file)
            found.setdefault(plain.stem, []).append(order)
    return {name: min(files)[-1] for name, files in found.items()}


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
