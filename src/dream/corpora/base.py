"""What a corpus is: a stream of documents, and labelled queries where it has them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from dream.corpora.bad_documents import BadDocument
from dream.corpora.source_file import SourceFile
from dream.utils.errors import ConfigError

MOST_LABEL_BYTES = 100_000_000  # of a line of queries or qrels


@dataclass(frozen=True, slots=True)
class Document:
    """Unit of a corpus. `text` is what is cut into passages and windows; `title` is only shown.

    `file` and `line` say where it came from, for messages.
    """

    id: str
    title: str
    text: str
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Labels:
    """Labelled queries of one split, for evaluation only: texts by query id, and grades by query and document id."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


class Corpus(Protocol):
    """A source of documents. One file and one YAML add another."""

    name: str
    deduplicate: bool
    on_bad_document: str  # one of dream.corpora.bad_documents.POLICIES

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able description of everything the documents depend on."""
        ...

    def size_bytes(self) -> int:
        """Bytes `documents` will read, for the progress bar."""
        ...

    def documents(self, refuse: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        """The documents, in a fixed order, one at a time. Each bad one goes to `refuse`, which may raise.

        Without `refuse` they are treated as `on_bad_document` says, and not listed.
        """
        ...

    def splits(self) -> list[str]:
        """Names of the labelled splits; empty where there are no labels."""
        ...

    def labels(self, split: str) -> Labels:
        """Queries and qrels of one split."""
        ...


def existing_path(key: str, value: str | None, kind: Literal["file", "folder", "file or folder"]) -> Path:
    """The path, or a one-line error naming the key."""
    if not value:
        raise ConfigError(key, value, f"the path of a {kind} is needed, for example {key}=my_corpus")
    path = Path(value).expanduser()
    if not path.exists():
        raise ConfigError(key, value, f"no such {kind} (looked for {path.resolve()})")
    if not path.is_dir() and not path.is_file():
        raise ConfigError(key, value, f"this is a pipe or a device, but a {kind} that can be read twice is needed")
    if (kind == "file" and path.is_dir()) or (kind == "folder" and not path.is_dir()):
        raise ConfigError(key, value, f"this is a {'folder' if path.is_dir() else 'file'}, but a {kind} is needed")
    return path


def decoded(file: str, number: int, line: bytes | None, most_bytes: int) -> str:
    """The text of a line of `SourceFile.lines`; BadDocument where it has none."""
    if line is None:
        raise too_long(file, number, most_bytes)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        detail = f"not valid UTF-8 ({error.reason} at byte {error.start + 1}); convert the file to UTF-8"
        raise BadDocument(file, number, "not UTF-8", detail) from error


def too_long(file: str, number: int, most_bytes: int) -> BadDocument:
    megabytes = f"{most_bytes / 1e6:g}"
    return BadDocument(
        file, number, "too long", f"longer than corpus.max_document_mb={megabytes}; raise it or split it"
    )


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file, plain or gzip; a bad line is named in the error."""
    for number, line in SourceFile(path).lines(MOST_LABEL_BYTES):
        yield number, decoded(str(path), number, line, MOST_LABEL_BYTES)
