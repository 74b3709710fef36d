"""What a corpus is: a stream of documents, and labelled queries where it has them."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dream.errors import ConfigError, DataError


@dataclass(frozen=True)
class Document:
    """Unit of a corpus. `text` is what is cut into passages and windows; `title` is only shown."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Labels:
    """Labelled queries of one split, for evaluation only: texts by query id, and grades by query and document id."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


class Corpus(Protocol):
    """A source of documents. One file and one YAML add another."""

    name: str
    deduplicate: bool

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able description of everything the documents depend on."""
        ...

    def size_bytes(self) -> int:
        """Bytes `documents` will read, for the progress bar."""
        ...

    def documents(self) -> Iterator[Document]:
        """The documents, in a fixed order, one at a time."""
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
    if (kind == "file" and path.is_dir()) or (kind == "folder" and not path.is_dir()):
        raise ConfigError(key, value, f"this is a {'folder' if path.is_dir() else 'file'}, but a {kind} is needed")
    return path


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file, plain or gzip; a bad line is named in the error."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not valid UTF-8 ({error.reason}); convert the file to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}:{number + 1}: damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
