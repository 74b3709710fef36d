"""The interface of a corpus: a stream of documents, and labelled queries if it has them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import Stemmer

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.utils.errors import ConfigError, require

LANGUAGES = [name for name in Stemmer.algorithms() if "porter" not in name]  # the others are older stemmers


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus.

    Args:
        id: The document's id in the corpus. Labels refer to it.
        title: Only shown in search results.
        text: Cut into passages and windows.
        file: The file that contains the document, for messages.
        line: Its line in the file, from 1. For Parquet, its row; for a JSON array, the number of the element.
    """

    id: str
    title: str
    text: str
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Labels:
    """Labelled queries of one split, used for evaluation only.

    Args:
        queries: Text by query id.
        qrels: Relevance grade by query id and document id.
    """

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


class Corpus(Protocol):
    """A source of documents. To add a corpus, write one class and one YAML file.

    It may also have an attribute `language`, as `known_language` returns it. Without one, BM25 counts plain words.
    """

    name: str
    deduplicate: bool
    on_bad_document: str  # one of dream.corpora.bad_documents.POLICIES

    def fingerprint(self) -> dict[str, Any]:
        """Description of everything that the documents depend on, as JSON values. It does not depend on the path."""
        ...

    def size_bytes(self) -> int:
        """Approximate size of the text that `documents` reads, for the progress bar."""
        ...

    def documents(self, handle: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        """Yield the documents in a fixed order.

        Args:
            handle: Called with each bad document; it may raise. Default: follow `on_bad_document`, without a list.
        """
        ...

    def splits(self) -> list[str]:
        """Names of the labelled splits; empty if there are no labels."""
        ...

    def labels(self, split: str) -> Labels:
        """Queries and qrels of one split."""
        ...


def known_language(language: str | None) -> str | None:
    """The value of `corpus.language`: one of Snowball's languages, or None for plain words.

    Raises:
        ConfigError: Snowball does not know it.
    """
    remedy = f"choose null for plain words, or {', '.join(LANGUAGES)}"
    require(language is None or language in LANGUAGES, "corpus.language", language, remedy)
    return language


class TextSettings:
    """Settings of every corpus that reads the user's text.

    Args:
        name: Shown in messages; also the first part of the store's name.
        deduplicate: Keep one copy of equal texts.
        on_bad_document: See `BadDocumentPolicy`.
        max_document_mb: A document longer than this is a bad document, in MB.
        language: Language of the text, for BM25: see `known_language`.

    Raises:
        ConfigError: A value is not usable.
    """

    def __init__(
        self,
        name: str,
        deduplicate: bool,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
        language: str | None,
    ) -> None:
        require(max_document_mb > 0, "corpus.max_document_mb", max_document_mb, "more than 0 MB")
        self.name, self.language = name, known_language(language)
        self.deduplicate, self.most_bytes = deduplicate, int(max_document_mb * 1_000_000)
        self.on_bad_document = BadDocumentPolicy(on_bad_document).policy


def existing_path(key: str, value: str | None, kind: Literal["file", "folder", "file or folder"]) -> Path:
    """The path with `~` expanded.

    Raises:
        ConfigError: The path is missing, or not of this kind. The message names the key.
    """
    if not value:
        raise ConfigError(key, value, f"the path of a {kind} is needed, for example {key}=my_corpus")
    path = Path(value).expanduser()
    if not path.exists():
        place = "" if path.is_absolute() else f" (looked for {path.resolve()})"
        raise ConfigError(key, value, f"no such {kind}{place}")
    if not path.is_dir() and not path.is_file():
        raise ConfigError(key, value, f"this is a pipe or a device, but a {kind} that can be read twice is needed")
    if (kind == "file" and path.is_dir()) or (kind == "folder" and not path.is_dir()):
        raise ConfigError(key, value, f"this is a {'folder' if path.is_dir() else 'file'}, but a {kind} is needed")
    return path
