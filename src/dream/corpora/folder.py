"""Reads documents from Markdown, HTML, PDF and plain text files below a folder."""

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.corpora.base import Document, Labels, TextSettings, existing_path
from dream.corpora.extract.html import extract_html
from dream.corpora.extract.markdown import extract_markdown
from dream.corpora.extract.pdf import extract_pdf
from dream.corpora.extract.sections import Extract, Section
from dream.corpora.lines import BYTE_ORDER_MARK, decoded, refuse_binary, too_long
from dream.corpora.source_file import SourceFile
from dream.corpora.text import matching_files, relative_name
from dream.corpora.values import valid
from dream.utils.errors import ConfigError, require, require_installed
from dream.utils.logging import get_logger

log = get_logger(__name__)

KINDS = {".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf",
         ".txt": "text"}  # fmt: skip
PACKAGES = {"markdown": ("markdown_it", "bs4"), "html": ("bs4",), "pdf": ("pypdf",), "text": ()}  # importable names
DISTRIBUTIONS = {"markdown_it": "markdown-it-py", "bs4": "beautifulsoup4", "pypdf": "pypdf"}
SPLITS = ("headings", "file")
RULES = 2  # of extraction; another number, if the same files give another text: stores are then built again
MOST_SUFFIXES = 6  # named in the message about files that are not read


class FolderCorpus(TextSettings):
    """The files of a folder whose suffix is in `KINDS`. Hidden files and folders are left out.

    Args:
        name: Shown in messages; also the first part of the store's name.
        path: A folder, which is searched with all its subfolders, or one file.
        pattern: Which files to read, e.g. `*.md`.
        split_by: A document is the text below a heading, or a page of a PDF (`headings`), or a file (`file`).
        deduplicate: Keep one copy of equal texts.
        on_bad_document: See `BadDocumentPolicy`.
        max_document_mb: A file with more text than this is a bad document, in MB.
        language: Language of the text, for BM25: see `known_language`.

    Raises:
        ConfigError: A path or value is not usable, or a package is missing.
    """

    def __init__(
        self,
        name: str,
        path: str,
        pattern: str,
        split_by: Literal["headings", "file"],
        deduplicate: bool,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
        language: str | None,
    ) -> None:
        super().__init__(name, deduplicate, on_bad_document, max_document_mb, language)
        self.root = existing_path("corpus.path", path, "file or folder")
        require(split_by in SPLITS, "corpus.split_by", split_by, f"choose {' or '.join(SPLITS)}")
        self.split_by = split_by
        self.files = [SourceFile(file) for file in self._readable(path, pattern)]
        self.kinds = sorted({_kind(file.path) for file in self.files})
        self.packages = sorted({package for kind in self.kinds for package in PACKAGES[kind]})
        require_installed(self.packages, "folder", "corpus", "folder")

    def _readable(self, path: str, pattern: str) -> list[Path]:
        if self.root.is_file():
            found = [self.root]
        else:
            found = [file for file in matching_files(self.root, pattern) if not _hidden(file, self.root)]
        readable = [file for file in found if file.suffix.lower() in KINDS]
        require(bool(readable), "corpus.path", path, f"no file that matches corpus.pattern={pattern} ends with "
                f"{', '.join(KINDS)}")  # fmt: skip
        others = Counter(file.suffix.lower() or "no suffix" for file in found if file.suffix.lower() not in KINDS)
        if others:
            named = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(MOST_SUFFIXES))
            log.info(f"{self.root}: {len(readable):,} files are read; files of other kinds are not: {named}")
        return readable

    def fingerprint(self) -> dict[str, Any]:
        """Includes the names of the files, which are part of the ids, and the versions of the extractors."""
        return {
            "kind": "folder",
            "rules": RULES,
            "split_by": self.split_by,
            "policy": [self.on_bad_document, self.most_bytes],
            "packages": {name: version(DISTRIBUTIONS[name]) for name in self.packages},
            "files": [[relative_name(file.path, self.root), file.fingerprint()] for file in self.files],
        }

    def size_bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)

    def documents(self, handle: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        handle = handle or BadDocumentPolicy(self.on_bad_document).handle
        for source in self.files:
            try:
                extract = self._extract(source)
                size = sum(len(section.text.encode("utf-8", "replace")) for section in extract.sections)
                if size > self.most_bytes:
                    raise too_long(str(source.path), 1, self.most_bytes)
            except BadDocument as bad:
                handle(bad)
            else:
                yield from self._documents(source.path, extract)

    def _documents(self, file: Path, extract: Extract) -> Iterator[Document]:
        name = relative_name(file, self.root)
        title = valid(extract.title) or name
        if self.split_by == "file":
            yield Document(name, title, valid("\n".join(section.text for section in extract.sections)), str(file), 1)
            return
        seen: Counter[int] = Counter()
        for section in extract.sections or [Section("", "", 1)]:  # a file without text is counted as empty
            seen[section.line] += 1
            place = f"{name}:{section.line}" + (f".{seen[section.line]}" if seen[section.line] > 1 else "")
            heading = f"{title}: {valid(section.title)}" if section.title not in ("", extract.title) else title
            yield Document(place, heading, valid(section.text), str(file), section.line)

    def _extract(self, source: SourceFile) -> Extract:
        """The text of one file.

        Raises:
            BadDocument: It cannot be read.
        """
        kind = _kind(source.path)
        if kind == "pdf":
            extract = extract_pdf(source.path)
            source.require_unchanged(0)
            return extract
        content = self._content(source)
        try:
            if kind == "html":
                return extract_html(content)
            text = self._text(source, content)
            return extract_markdown(text) if kind == "markdown" else Extract("", [Section("", text.strip(), 1)])
        except ValueError as error:
            raise BadDocument(str(source.path), 1, "damaged HTML", f"no readable HTML ({error}); correct it") from error

    def _text(self, source: SourceFile, content: bytes) -> str:
        text = decoded(str(source.path), 1, content.removeprefix(BYTE_ORDER_MARK), self.most_bytes)
        refuse_binary(str(source.path), 1, text)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _content(self, source: SourceFile) -> bytes:
        """The bytes of a file that is not longer than a document may be."""
        if source.path.stat().st_size > self.most_bytes:
            raise too_long(str(source.path), 1, self.most_bytes)
        return b"".join(block for _, block in source.numbered(source.blocks(), "blocks"))

    def splits(self) -> list[str]:
        return []

    def labels(self, split: str) -> Labels:
        raise ConfigError("split", split, f"corpus {self.name} has no labels; corpus=jsonl and corpus=beir can")


def _kind(file: Path) -> str:
    return KINDS[file.suffix.lower()]


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)
