"""Documents from plain text: one file or a folder, split by blank lines or by file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dream.corpora.base import Document, Labels, existing_file
from dream.errors import ConfigError, DataError, require
from dream.files import file_fingerprint


class TextCorpus:
    """`split_by: blank_lines` makes a document of each paragraph block, `file` of each file."""

    def __init__(
        self, name: str, path: str, pattern: str, split_by: Literal["blank_lines", "file"], deduplicate: bool
    ) -> None:
        self.name = name
        self.deduplicate = deduplicate
        self.root: Path = existing_file("corpus.path", path)
        require(split_by in ("blank_lines", "file"), "corpus.split_by", split_by, "choose blank_lines or file")
        self.split_by = split_by
        self.files = [self.root] if self.root.is_file() else sorted(p for p in self.root.rglob(pattern) if p.is_file())
        require(bool(self.files), "corpus.path", path, f"no file in this folder matches corpus.pattern={pattern}")

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "text",
            "split_by": self.split_by,
            "files": [[self._name(file), file_fingerprint(file)] for file in self.files],
        }

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def documents(self) -> Iterator[Document]:
        for file in self.files:
            try:
                if self.split_by == "file":
                    yield Document(self._name(file), self._name(file), file.read_text(encoding="utf-8").strip())
                else:
                    yield from self._blocks(file)
            except UnicodeDecodeError as error:
                raise DataError(f"{file}: not valid UTF-8 ({error.reason}); convert the file to UTF-8") from error

    def _blocks(self, file: Path) -> Iterator[Document]:
        block: list[str] = []
        first = 1
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    first = first if block else number
                    block.append(line)
                elif block:
                    yield Document(f"{self._name(file)}:{first}", self._name(file), "".join(block).strip())
                    block = []
        if block:
            yield Document(f"{self._name(file)}:{first}", self._name(file), "".join(block).strip())

    def _name(self, file: Path) -> str:
        return file.name if file == self.root else str(file.relative_to(self.root))

    def splits(self) -> list[str]:
        return []

    def labels(self, split: str) -> Labels:
        raise ConfigError("split", split, f"corpus {self.name} has no labels; corpus=jsonl and corpus=beir can")
