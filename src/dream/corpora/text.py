"""Documents from plain text: one file or a folder, split by blank lines or by file."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.corpora.base import Document, Labels, decoded, existing_path, too_long
from dream.corpora.source_file import SourceFile
from dream.utils.errors import ConfigError, DataError, require

Lines = Iterator[tuple[int, "str | BadDocument"]]


class TextCorpus:
    """`split_by: blank_lines` makes a document of each paragraph block, `file` of each file."""

    def __init__(
        self,
        name: str,
        path: str,
        pattern: str,
        split_by: Literal["blank_lines", "file"],
        deduplicate: bool,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
    ) -> None:
        self.name = name
        self.deduplicate = deduplicate
        self.root = existing_path("corpus.path", path, "file or folder")
        require(bool(pattern), "corpus.pattern", pattern, "name the files of a folder to read, e.g. *.txt")
        require(split_by in ("blank_lines", "file"), "corpus.split_by", split_by, "choose blank_lines or file")
        require(max_document_mb > 0, "corpus.max_document_mb", max_document_mb, "more than 0 MB")
        self.split_by, self.most_bytes = split_by, int(max_document_mb * 1_000_000)
        self.on_bad_document = BadDocumentPolicy(on_bad_document).policy
        files = [self.root] if self.root.is_file() else _files(self.root, pattern)
        require(bool(files), "corpus.path", path, f"no file in this folder matches corpus.pattern={pattern}")
        self.files = [SourceFile(file) for file in files]

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "text",
            "split_by": self.split_by,
            "policy": [self.on_bad_document, self.most_bytes],
            "files": [[self._name(file.path), file.fingerprint()] for file in self.files],
        }

    def size_bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)

    def documents(self, refuse: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        refuse = refuse or BadDocumentPolicy(self.on_bad_document).refuse
        for file in self.files:
            lines = self._lines(file)
            for block in [lines] if self.split_by == "file" else _blocks(lines):
                try:
                    document = self._document(file.path, block)
                except BadDocument as bad:
                    refuse(bad)
                else:
                    yield document
            deque(lines, maxlen=0)  # the rest of a refused file, which may be found to have changed

    def _lines(self, file: SourceFile) -> Lines:
        for number, line in file.lines(self.most_bytes):
            try:
                text = decoded(str(file.path), number, line, self.most_bytes)
                if "\0" in text:
                    detail = "NUL characters: this is no plain text in UTF-8, but binary or UTF-16"
                    raise BadDocument(str(file.path), number, "NUL characters", detail)
                yield number, text
            except BadDocument as bad:
                yield number, bad

    def _document(self, file: Path, numbered: Iterable[tuple[int, str | BadDocument]]) -> Document:
        """The document of these lines; BadDocument for the first bad one, or where all are too long together."""
        name, first, size = self._name(file), 0, 0
        lines: list[str] = []
        for number, line in numbered:
            if isinstance(line, BadDocument):
                raise line
            first = first or number
            size += 1 + (len(line) if line.isascii() else len(line.encode()))
            if size > self.most_bytes + 1:
                raise too_long(str(file), first, self.most_bytes)
            lines.append(line)
        document_id = name if self.split_by == "file" else f"{name}:{first}"
        return Document(document_id, name, "\n".join(lines).strip(), str(file), first)

    def _name(self, file: Path) -> str:
        """The file's name below the root; bytes of it that are not UTF-8 are spelled out."""
        name = file.name if file == self.root else file.relative_to(self.root).as_posix()
        return os.fsencode(name).decode("utf-8", "backslashreplace")

    def splits(self) -> list[str]:
        return []

    def labels(self, split: str) -> Labels:
        raise ConfigError("split", split, f"corpus {self.name} has no labels; corpus=jsonl and corpus=beir can")


def _blocks(lines: Lines) -> Iterator[Lines]:
    """The runs of lines that are not blank; a bad line is not blank."""
    for has_text, block in groupby(lines, key=lambda numbered: bool(str(numbered[1]).strip())):
        if has_text:
            yield block


def _files(folder: Path, pattern: str) -> list[Path]:
    """The matching files at any depth, sorted; a folder that cannot be listed is an error, not an empty one."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    deque(os.walk(folder, onerror=refuse), maxlen=0)
    return sorted(path for path in folder.rglob(pattern) if path.is_file())
