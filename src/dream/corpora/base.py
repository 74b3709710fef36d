"""What a corpus is: a stream of documents, and labelled queries where it has them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


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


def existing_file(key: str, value: str | None) -> "Any":
    """The path, or a one-line error naming the key."""
    from pathlib import Path

    from dream.errors import ConfigError

    if not value:
        raise ConfigError(key, value, f"a path is needed, for example {key}=/data/my.jsonl")
    path = Path(value).expanduser()
    if not path.exists():
        raise ConfigError(key, value, f"no such file or folder (looked for {path.resolve()})")
    return path
