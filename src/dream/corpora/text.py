"""Reads documents from plain text: one file or a folder, split by blank lines, by lines or by file."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.corpora.base import Document, Labels, TextSettings, existing_path
from dream.corpora.lines import decoded, refuse_binary, too_long
from dream.corpora.source_file import SourceFile
from dream.utils.errors import ConfigError, DataError, require

SPLITS = ("blank_lines", "lines", "file")

Lines = Iterator[tuple[int, "str | BadDocument"]]


class TextCorpus(TextSettings):
    """Text files in UTF-8, plain or compressed.

    Args:
        name: Shown in messages; also the first part of the store's name.
        path: A file, or a folder, which is searched with all its subfolders.
        pattern: Which files of a folder to read, e.g. `*.txt`.
        split_by: A document is a block between blank lines (`blank_lines`), a line that is not blank (`lines`), or a
            file (`file`).
        deduplicate: Keep one copy of equal texts.
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
        pattern: str,
        split_by: Literal["blank_lines", "lines", "file"],
        deduplicate: bool,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
        language: str | None,
    ) -> None:
        super().__init__(name, deduplicate, on_bad_document, max_document_mb, language)
        self.root = existing_path("corpus.path", path, "file or folder")
        require(bool(pattern), "corpus.pattern", pattern, "name the files of a folder to read, e.g. *.txt")
        require(split_by in SPLITS, "corpus.split_by", split_by, f"choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
        self.split_by = split_by
        files = [self.root] if self.root.is_file() else matching_files(self.root, pattern)
        require(bool(files), "corpus.path", path, f"no file in this folder matches corpus.pattern={pattern}")
        self.files = [SourceFile(file) for file in files]

    def fingerprint(self) -> dict[str, Any]:
        """Includes the names of the files in the folder `path`, because they are part of the documents' ids."""
        return {
            "kind": "text",
            "split_by": self.split_by,
            "policy": [self.on_bad_document, self.most_bytes],
            "files": [[relative_name(file.path, self.root), file.fingerprint()] for file in self.files],
        }

    def size_bytes(self) -> int:
        return sum(file.text_bytes() for file in self.files)

    def documents(self, handle: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        handle = handle or BadDocumentPolicy(self.on_bad_document).handle
        for file in self.files:
            lines = self._lines(file)
            for block in self._blocks(lines):
                try:
                    document = self._document(file.path, block)
                except BadDocument as bad:
                    handle(bad)
                else:
                    yield document
            deque(lines, maxlen=0)  # read also a bad file to its end: this verifies that it has not changed

    def _lines(self, file: SourceFile) -> Lines:
        """(number from 1, text or error) of each line of a file. A file that is not text gives one error."""
        try:
            for number, line in file.lines(self.most_bytes):
                try:
                    text = decoded(str(file.path), number, line, self.most_bytes)
                    refuse_binary(str(file.path), number, text)
                    yield number, text
                except BadDocument as bad:
                    yield number, bad
        except BadDocument as bad:
            yield bad.line, bad

    def _blocks(self, lines: Lines) -> Iterator[Lines]:
        """The lines of each document. A bad line does not count as blank."""
        if self.split_by == "file":
            yield lines
        elif self.split_by == "lines":
            yield from (iter([numbered]) for numbered in lines if str(numbered[1]).strip())
        else:
            for has_text, block in groupby(lines, key=lambda numbered: bool(str(numbered[1]).strip())):
                if has_text:
                    yield block

    def _document(self, file: Path, numbered: Iterable[tuple[int, str | BadDocument]]) -> Document:
        """The document of these lines.

        Raises:
            BadDocument: A line is bad, or the document is too long.
        """
        name, first, size = relative_name(file, self.root), 0, 0
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

    def splits(self) -> list[str]:
        return []

    def labels(self, split: str) -> Labels:
        raise ConfigError("split", split, f"corpus {self.name} has no labels; corpus=jsonl and corpus=beir can")


def relative_name(file: Path, root: Path) -> str:
    """The file's path relative to the corpus's path. Bytes that are not UTF-8 are written as escapes."""
    name = file.name if file == root else file.relative_to(root).as_posix()
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """The matching files at any depth, sorted. A folder that cannot be listed is an error."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    deque(os.walk(folder, onerror=refuse), maxlen=0)
    return sorted(path for path in folder.rglob(pattern) if path.is_file())
