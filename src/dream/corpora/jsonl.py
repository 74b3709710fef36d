"""Documents from a JSON-lines file, plain or gzip, with optional labels in BEIR's formats."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dream.corpora.base import Document, Labels, existing_file
from dream.errors import ConfigError, DataError, require
from dream.files import file_fingerprint


class JsonlCorpus:
    """One JSON object a line. The non-empty `text_fields` of a line, joined by a newline, are the document's text."""

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
    ) -> None:
        self.name = name
        self.path: Path = existing_file("corpus.path", path)
        require(bool(text_fields), "corpus.text_fields", list(text_fields), "name at least one field, e.g. [text]")
        self.id_field, self.title_field, self.text_fields = id_field, title_field, list(text_fields)
        self.deduplicate = deduplicate
        self.qrels_paths = {split: existing_file(f"corpus.qrels.{split}", p) for split, p in (qrels or {}).items()}
        self.queries_path = existing_file("corpus.queries", queries) if self.qrels_paths else None

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "jsonl",
            "content": file_fingerprint(self.path),
            "fields": [self.id_field, self.title_field, *self.text_fields],
        }

    def size_bytes(self) -> int:
        return self.path.stat().st_size * (4 if self.path.suffix == ".gz" else 1)

    def documents(self) -> Iterator[Document]:
        for number, record in _read_objects(self.path):
            yield self._document(number, record)

    def _document(self, number: int, record: dict[str, Any]) -> Document:
        if not any(field in record for field in self.text_fields):
            raise DataError(
                f"{self.path}:{number}: none of the fields {self.text_fields} is there, only {sorted(record)[:8]}; "
                "name the right ones with corpus.text_fields=[...]"
            )
        parts = []
        for field in self.text_fields:
            part = record.get(field) or ""
            if not isinstance(part, str):
                raise DataError(f"{self.path}:{number}: field {field!r} is {type(part).__name__}, not text")
            parts.append(part.strip())
        title = record.get(self.title_field) or ""
        return Document(str(record.get(self.id_field, number)), str(title), "\n".join(filter(None, parts)))

    def splits(self) -> list[str]:
        return list(self.qrels_paths)

    def labels(self, split: str) -> Labels:
        if split not in self.qrels_paths or self.queries_path is None:
            raise ConfigError("split", split, f"corpus {self.name} has the splits {self.splits() or 'none'}")
        qrels = _read_qrels(self.qrels_paths[split])
        texts: dict[str, str] = {}
        for number, record in _read_objects(self.queries_path):
            if "_id" not in record or not isinstance(record.get("text"), str):
                raise DataError(f"{self.queries_path}:{number}: a query needs the fields _id and text")
            if str(record["_id"]) in qrels:
                texts[str(record["_id"])] = record["text"]
        missing = [query for query in qrels if query not in texts]
        if missing:
            raise DataError(f"{self.qrels_paths[split]}: {len(missing)} queries are not in {self.queries_path}, "
                            f"the first is {missing[0]!r}")  # fmt: skip
        return Labels(texts, qrels)


class BeirCorpus(JsonlCorpus):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv. Text is the title, then the text."""

    def __init__(self, name: str, path: str, deduplicate: bool) -> None:
        folder: Path = existing_file("corpus.path", path)
        if not (folder / "corpus.jsonl").exists():
            raise ConfigError("corpus.path", path, "this folder has no corpus.jsonl; BEIR's layout is expected")
        super().__init__(
            name=name,
            path=str(folder / "corpus.jsonl"),
            id_field="_id",
            title_field="title",
            text_fields=["title", "text"],
            deduplicate=deduplicate,
            queries=str(folder / "queries.jsonl"),
            qrels={qrels.stem: str(qrels) for qrels in sorted((folder / "qrels").glob("*.tsv"))},
        )


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-blank line; a bad line ends the stream with its file and number."""
    number = 0
    try:
        with _open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise DataError(f"{path}:{number}: a line must hold a JSON object, not {type(record).__name__}")
                yield number, record
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not valid JSON ({error.msg}); mend or remove the line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number + 1}: not valid UTF-8 ({error.reason}); convert the file to UTF-8") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}:{number + 1}: damaged gzip file ({error})") from error


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Tab-separated `query-id corpus-id score`, with or without that header line."""
    qrels: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not row or (number == 1 and not row[-1].lstrip("-").isdigit()):
                continue
            if len(row) != 3 or not row[2].lstrip("-").isdigit():
                raise DataError(f"{path}:{number}: expected query-id, corpus-id and an integer, tab-separated")
            qrels.setdefault(row[0], {})[row[1]] = int(row[2])
    return qrels
