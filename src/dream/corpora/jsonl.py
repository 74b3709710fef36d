"""Documents from a JSON-lines file, plain or gzip, with optional labels in BEIR's formats."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from dream.corpora.base import Document, Labels, existing_path, text_lines
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
        self.path = existing_path("corpus.path", path, "file")
        require(bool(text_fields), "corpus.text_fields", list(text_fields), "name at least one field, e.g. [text]")
        self.id_field, self.title_field, self.text_fields = id_field, title_field, list(text_fields)
        self.deduplicate = deduplicate
        self.qrels_paths = {
            split: existing_path(f"corpus.qrels.{split}", file, "file") for split, file in (qrels or {}).items()
        }
        self.queries_path = existing_path("corpus.queries", queries, "file") if self.qrels_paths else None

    @cached_property
    def _content(self) -> str:
        return file_fingerprint(self.path)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "jsonl",
            "content": self._content,
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
        name = record.get(self.id_field)
        title = record.get(self.title_field) or ""
        return Document(_valid(str(number if name is None else name)), _valid(str(title)),
                        _valid("\n".join(filter(None, parts))))  # fmt: skip

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
                texts[str(record["_id"])] = _valid(record["text"])
        missing = [query for query in qrels if query not in texts]
        if missing:
            raise DataError(f"{self.qrels_paths[split]}: {len(missing)} queries are not in {self.queries_path}, "
                            f"the first is {missing[0]!r}")  # fmt: skip
        return Labels(texts, qrels)


class BeirCorpus(JsonlCorpus):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv. Text is the title, then the text."""

    def __init__(self, name: str, path: str, deduplicate: bool) -> None:
        folder = existing_path("corpus.path", path, "folder")
        plain, packed = folder / "corpus.jsonl", folder / "corpus.jsonl.gz"
        if not plain.exists() and not packed.exists():
            raise ConfigError("corpus.path", path, "this folder has no corpus.jsonl; BEIR's layout is expected")
        queries = folder / "queries.jsonl"
        super().__init__(
            name=name,
            path=str(plain if plain.exists() else packed),
            id_field="_id",
            title_field="title",
            text_fields=["title", "text"],
            deduplicate=deduplicate,
            queries=str(queries if queries.exists() else folder / "queries.jsonl.gz"),
            qrels={qrels.stem: str(qrels) for qrels in sorted((folder / "qrels").glob("*.tsv"))},
        )


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-blank line; a bad line ends the stream with its file and number."""
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # besides bad syntax, numbers of thousands of digits
            reason = getattr(error, "msg", error)
            raise DataError(f"{path}:{number}: not valid JSON ({reason}); mend or remove the line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: a line must hold a JSON object, not {type(record).__name__}")
        yield number, record


def _valid(text: str) -> str:
    """The text with each lone surrogate, which JSON can spell and UTF-8 cannot, replaced by a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """BEIR's tab-separated `query-id corpus-id score`, or TREC's `query-id 0 corpus-id score`; a header may lead."""
    qrels: dict[str, dict[str, int]] = {}
    for number, line in text_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        grade = _grade(fields[-1])
        if len(fields) not in (3, 4) or (grade is None and number > 1):
            raise DataError(f"{path}:{number}: expected query-id, corpus-id and an integer, separated by tabs")
        if grade is not None:
            qrels.setdefault(fields[0], {})[fields[-2]] = grade
    if not qrels:
        raise DataError(f"{path}: this file of labels has no line with a label")
    return qrels


def _grade(field: str) -> int | None:
    try:
        return int(float(field)) if float(field).is_integer() else None
    except ValueError:
        return None
