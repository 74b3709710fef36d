"""Documents from plain text: one file or a folder, split by blank lines or by file."""

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from dream.corpora.base import Document, Labels, existing_path, text_lines
from dream.errors import ConfigError, require
from dream.files import file_fingerprint


class TextCorpus:
    """`split_by: blank_lines` makes a document of each paragraph block, `file` of each file."""

    def __init__(
        self, name: str, path: str, pattern: str, split_by: Literal["blank_lines", "file"], deduplicate: bool
    ) -> None:
        self.name = name
        self.deduplicate = deduplicate
        self.root = existing_path("corpus.path", path, "file or folder")
        require(bool(pattern), "corpus.pattern", pattern, "name the files of a folder to read, e.g. *.txt")
        require(split_by in ("blank_lines", "file"), "corpus.split_by", split_by, "choose blank_lines or file")
        self.split_by = split_by
        self.files = [self.root] if self.root.is_file() else sorted(p for p in self.root.rglob(pattern) if p.is_file())
        require(bool(self.files), "corpus.path", path, f"no file in this folder matches corpus.pattern={pattern}")

    @cached_property
    def _content(self) -> list[list[str]]:
        return [[self._name(file), file_fingerprint(file)] for file in self.files]

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "text", "split_by": self.split_by, "files": self._content}

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def documents(self) -> Iterator[Document]:
        for file in self.files:
            name = self._name(file)
            if self.split_by == "file":
                yield Document(name, name, "\n".join(line for _, line in text_lines(file)).strip())
            else:
                for has_text, block in groupby(text_lines(file), key=lambda numbered: bool(numbered[1].strip())):
                    if has_text:
                        first, *_ = lines = list(block)
                        yield Document(f"{name}:{first[0]}", name, "\n".join(line for _, line in lines).strip())

    def _name(self, file: Path) -> str:
        return file.name if file == self.root else file.relative_to(self.root).as_posix()

    def splits(self) -> list[str]:
        return []

    def labels(self, split: str) -> Labels:
        raise ConfigError("split", split, f"corpus {self.name} has no labels; corpus=jsonl and corpus=beir can")
