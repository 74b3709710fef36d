"""Documents from a JSON-lines file, plain or gzip, with optional labels in BEIR's formats."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.corpora.base import MOST_LABEL_BYTES, Document, Labels, decoded, existing_path, text_lines
from dream.corpora.source_file import SourceFile
from dream.utils.errors import ConfigError, DataError, require

HIGHEST_GRADE = 1000


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
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
    ) -> None:
        self.name = name
        self.path = existing_path("corpus.path", path, "file")
        require(bool(text_fields), "corpus.text_fields", list(text_fields), "name at least one field, e.g. [text]")
        self.id_field, self.title_field, self.text_fields = id_field, title_field, list(text_fields)
        require(max_document_mb > 0, "corpus.max_document_mb", max_document_mb, "more than 0 MB")
        self.deduplicate, self.most_bytes = deduplicate, int(max_document_mb * 1_000_000)
        self.on_bad_document = BadDocumentPolicy(on_bad_document).policy
        self.source = SourceFile(self.path)
        self.qrels_paths = {
            split: existing_path(f"corpus.qrels.{split}", file, "file") for split, file in (qrels or {}).items()
        }
        self.queries_path = existing_path("corpus.queries", queries, "file") if self.qrels_paths else None

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "jsonl",
            "content": self.source.fingerprint(),
            "fields": [self.id_field, self.title_field, *self.text_fields],
            "policy": [self.on_bad_document, self.most_bytes],
        }

    def size_bytes(self) -> int:
        return self.path.stat().st_size * (4 if self.path.suffix == ".gz" else 1)

    def documents(self, refuse: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        refuse = refuse or BadDocumentPolicy(self.on_bad_document).refuse
        file = str(self.path)
        for number, line in self.source.lines(self.most_bytes):
            if line is None or line.strip():
                try:
                    document = self._document(file, number, _object(file, number, line, self.most_bytes))
                except BadDocument as bad:
                    refuse(bad)
                else:
                    yield document

    def _document(self, file: str, number: int, record: dict[str, Any]) -> Document:
        parts = []
        for field in self.text_fields:
            part = record.get(field)
            if part is None:
                continue
            if not isinstance(part, str):
                kind = type(part).__name__
                raise BadDocument(file, number, "field not text", f"field {field!r} is {kind}, not text")
            parts.append(part.strip())
        if not any(parts) and not any(field in record for field in self.text_fields):
            raise BadDocument(file, number, "no text field", f"none of the fields {self.text_fields} is there, only "
                              f"{sorted(record)[:8]}; name the right ones with corpus.text_fields=[...]")  # fmt: skip
        name, title = record.get(self.id_field), record.get(self.title_field)
        for field, value in ((self.id_field, name), (self.title_field, title)):
            if value is not None and not _can_name(value):
                raise BadDocument(file, number, "field not text",
                                  f"field {field!r} is {type(value).__name__}, not text or a number")  # fmt: skip
        return Document(_valid(str(number if name is None else name)), _valid(str(title or "")),
                        _valid("\n".join(filter(None, parts))), file, number)  # fmt: skip

    def splits(self) -> list[str]:
        return list(self.qrels_paths)

    def labels(self, split: str) -> Labels:
        if split not in self.qrels_paths or self.queries_path is None:
            raise ConfigError("split", split, f"corpus {self.name} has the splits {self.splits() or 'none'}")
        qrels = _read_qrels(self.qrels_paths[split])
        texts = _read_queries(self.queries_path, set(qrels))
        missing = [query for query in qrels if query not in texts]
        if missing:
            raise DataError(f"{self.qrels_paths[split]}: {len(missing)} queries are not in {self.queries_path}, "
                            f"the first is {missing[0]!r}")  # fmt: skip
        return Labels(texts, qrels)


class BeirCorpus(JsonlCorpus):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv. Text is the title, then the text."""

    def __init__(
        self,
        name: str,
        path: str,
        deduplicate: bool,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
    ) -> None:
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
            on_bad_document=on_bad_document,
            max_document_mb=max_document_mb,
        )


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON; write null in its place")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _object(file: str, number: int, line: bytes | None, most_bytes: int) -> dict[str, Any]:
    """The JSON object of a line; BadDocument where it is none."""
    text = decoded(file, number, line, most_bytes)
    try:
        record = _decoder.decode(text)
    except json.JSONDecodeError as error:
        detail = f"not valid JSON ({error.msg} at character {error.pos + 1})"
        raise BadDocument(file, number, "not JSON", detail) from error
    except RecursionError as error:
        raise BadDocument(file, number, "not JSON", "JSON nested too deeply to be read") from error
    except ValueError as error:  # NaN and infinities, and numbers of thousands of digits
        raise BadDocument(file, number, "not JSON", f"not valid JSON ({error})") from error
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise BadDocument(file, number, "no object", f"a line must hold a JSON object, not {kind}")
    return record


def _can_name(value: Any) -> bool:
    """Whether this is an id or a title: text, or a number, which is written out."""
    return type(value) in (str, int, float)


def _valid(text: str) -> str:
    """The text with each lone surrogate, which JSON can spell and UTF-8 cannot, replaced by a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _read_queries(path: Path, wanted: set[str]) -> dict[str, str]:
    """Texts of the wanted queries. Labels have no policy: the first bad line is an error."""
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in SourceFile(path).lines(MOST_LABEL_BYTES):
        if line is not None and not line.strip():
            continue
        record = _object(str(path), number, line, MOST_LABEL_BYTES)
        name, text = record.get("_id"), record.get("text")
        if not _can_name(name) or not isinstance(text, str):
            found = ", ".join(f"{field!r} ({type(value).__name__})" for field, value in list(record.items())[:8])
            raise DataError(f"{path}:{number}: a query needs the fields _id and text, both of them text; this line has "
                            f"{found or 'no field'}")  # fmt: skip
        query = str(name)
        if query not in wanted:
            continue
        if not text.strip():
            raise DataError(f"{path}:{number}: the text of query {query!r} is empty; remove its labels, or write it")
        if texts.setdefault(query, _valid(text)) != _valid(text):
            raise DataError(f"{path}:{number}: query {query!r} has another text in line {lines[query]}; keep one")
        lines.setdefault(query, number)
    return texts


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """BEIR's tab-separated `query-id corpus-id score`, or TREC's `query-id 0 corpus-id score`; a header may lead."""
    qrels: dict[str, dict[str, int]] = {}
    for number, line in text_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and len(fields) in (3, 4) and not _is_number(fields[-1])):
            continue
        grade = _grade(fields[-1])
        if len(fields) not in (3, 4) or grade is None:
            raise DataError(f"{path}:{number}: expected query-id, corpus-id and an integer up to {HIGHEST_GRADE}, "
                            f"separated by tabs; found {line[:80]!r}")  # fmt: skip
        if qrels.setdefault(fields[0], {}).setdefault(fields[-2], grade) != grade:
            raise DataError(f"{path}:{number}: query {fields[0]!r} and document {fields[-2]!r} have grade {grade} here "
                            f"and {qrels[fields[0]][fields[-2]]} in a line before; keep one")  # fmt: skip
    if not qrels:
        raise DataError(f"{path}: this file of labels has no line with a label")
    return qrels


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _grade(field: str) -> int | None:
    """A whole number, which may be written 1.0, between -1000 and 1000."""
    whole = _is_number(field) and float(field).is_integer() and abs(float(field)) <= HIGHEST_GRADE
    return int(float(field)) if whole else None
