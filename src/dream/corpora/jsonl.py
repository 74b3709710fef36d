"""Documents with named fields: JSON lines, a JSON array, CSV, TSV or Parquet, with optional labels."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument
from dream.corpora.base import Document, existing_path
from dream.corpora.compression import SUFFIXES as COMPRESSION_SUFFIXES
from dream.corpora.compression import without_compression_suffix
from dream.corpora.readers import Records, format_of, read_records
from dream.corpora.readers.formats import READERS, SUFFIXES
from dream.corpora.readers.jsonl import json_object
from dream.corpora.record_corpus import RecordCorpus
from dream.corpora.source_file import SourceFile
from dream.utils.errors import ConfigError, require

TSV_RULES = 2  # of reading TSV; another number, if the same file gives other texts: stores are then built again


class JsonlCorpus(RecordCorpus):
    """A file of records.

    Args:
        path: The file. All formats except Parquet may be compressed (.gz, .bz2, .xz, .zst).
        format: A key of `READERS`; None: recognised by the file's suffix and its first bytes.

    The other arguments are those of `RecordCorpus`.
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
        format: str | None = None,  # configs of runs by version 0.2 lack it
    ) -> None:
        self.path = existing_path("corpus.path", path, "file")
        super().__init__(name, id_field, title_field, text_fields, deduplicate, queries, qrels, on_bad_document,
                         max_document_mb, language)  # fmt: skip
        remedy = f"choose {', '.join(READERS)}, or null for the format that the suffix names"
        require(format is None or format in READERS, "corpus.format", format, remedy)
        self.source, self.file = SourceFile(self.path), str(self.path)
        self.form = format or format_of(self.source)

    def fingerprint(self) -> dict[str, Any]:
        rules = {"rules": TSV_RULES} if self.form == "tsv" else {}
        return {"kind": self.form, "content": self.source.fingerprint()} | rules | self.content()

    def size_bytes(self) -> int:
        return self.source.text_bytes()

    def records(self) -> Records:
        return read_records(self.source, self.fields, self.most_bytes, self.form)

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
                document = self._document(self.file, 0, json_object(self.file, 0, line, self.most_bytes))
                documents += [document] if document.text.strip() else []
        self._warned = warned
        return (documents, read / self.size_bytes()) if documents else None


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
