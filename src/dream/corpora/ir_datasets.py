"""Documents, queries and labels of the catalogue of the library `ir_datasets`."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, Literal

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy
from dream.corpora.base import Document, Labels, TextSettings
from dream.corpora.lines import too_long
from dream.corpora.values import valid
from dream.utils.errors import ConfigError, DataError, first_line, require, require_installed

BYTES_PER_DOCUMENT = 1_000  # a guess for the progress bar: the catalogue knows only the number of documents
OTHER_SPLIT = "test"  # the split of a data set whose name does not end in one of SPLITS
SPLITS = ("train", "dev", "test")


class IrDatasetsCorpus(TextSettings):
    """A data set with documents. Files that are not in the library's cache are fetched on first use.

    Args:
        name: Shown in messages; also the first part of the store's name.
        dataset_id: Its name in the catalogue, e.g. `beir/scifact`.
        labels: Data sets with queries and labels by split, e.g. `{dev: beir/scifact/train, test: beir/scifact/test}`.
            None: `dataset_id` itself, if it has labels.
        text_fields: Fields of a document, joined by a newline; None: the text that the library takes by default.
        deduplicate: Keep one copy of equal texts.
        on_bad_document: See `BadDocumentPolicy`.
        max_document_mb: A document longer than this is a bad document, in MB.
        language: Language of the text, for BM25: see `known_language`.

    Raises:
        ConfigError: The catalogue has no such data set, or it lacks documents or labels.
    """

    def __init__(
        self,
        name: str,
        dataset_id: str,
        labels: dict[str, str] | None,
        text_fields: list[str] | None,
        deduplicate: bool,
        on_bad_document: Literal["error", "skip"],
        max_document_mb: float,
        language: str | None,
    ) -> None:
        require_installed(["ir_datasets"], "ir_datasets", "corpus", "ir_datasets")
        super().__init__(name, deduplicate, on_bad_document, max_document_mb, language)
        self.dataset_id, self.dataset = dataset_id, _load("corpus.dataset_id", dataset_id)
        require(self.dataset.has_docs(), "corpus.dataset_id", dataset_id, "this data set has no documents")
        if labels is None:
            last = dataset_id.rpartition("/")[2]
            labels = {last if last in SPLITS else OTHER_SPLIT: dataset_id} if _is_labelled(self.dataset) else {}
        self.labelled = {split: _load(f"corpus.labels.{split}", key) for split, key in labels.items()}
        for split, found in self.labelled.items():
            remedy = "this data set has no queries with labels"
            require(_is_labelled(found), f"corpus.labels.{split}", labels[split], remedy)
        known = self.dataset.docs_cls()._fields
        self.text_fields = list(text_fields) if text_fields else None
        for field in self.text_fields or []:
            require(field in known, "corpus.text_fields", list(text_fields or []), f"choose from {', '.join(known)}")

    def fingerprint(self) -> dict[str, Any]:
        """The library checks the hash of each file that it fetches, so the name and its version are enough."""
        return {
            "kind": "ir_datasets",
            "dataset_id": self.dataset_id,
            "version": version("ir_datasets"),
            "fields": self.text_fields,
            "policy": [self.on_bad_document, self.most_bytes],
        }

    def size_bytes(self) -> int:
        return (self.dataset.docs_metadata() or {}).get("count", 0) * BYTES_PER_DOCUMENT

    def documents(self, handle: Callable[[BadDocument], None] | None = None) -> Iterator[Document]:
        handle = handle or BadDocumentPolicy(self.on_bad_document).handle
        for number, record in enumerate(self._records(), start=1):
            try:
                document = self._document(number, record)
            except BadDocument as bad:
                handle(bad)
            else:
                yield document

    def _records(self) -> Iterator[Any]:
        number = 0
        try:
            for record in self.dataset.docs_iter():
                number += 1
                yield record
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.dataset_id}:{number + 1}: cannot be read ({first_line(error)})") from error

    def _document(self, number: int, record: Any) -> Document:
        if self.text_fields:
            parts = [getattr(record, field) for field in self.text_fields]
            text = "\n".join(str(part).strip() for part in parts if part)
        else:
            text = record.default_text().strip()
        if 4 * len(text) > self.most_bytes and len(text.encode("utf-8", "replace")) > self.most_bytes:
            raise too_long(self.dataset_id, number, self.most_bytes)
        title = getattr(record, "title", None) or ""
        return Document(valid(record.doc_id), valid(str(title)), valid(text), self.dataset_id, number)

    def splits(self) -> list[str]:
        return list(self.labelled)

    def labels(self, split: str) -> Labels:
        if split not in self.labelled:
            raise ConfigError("split", split, f"corpus {self.name} has the splits {self.splits() or 'none'}")
        source = self.labelled[split]
        qrels: dict[str, dict[str, int]] = {}
        for label in source.qrels_iter():
            qrels.setdefault(label.query_id, {})[label.doc_id] = int(label.relevance)
        queries = {query.query_id: query.default_text() for query in source.queries_iter() if query.query_id in qrels}
        missing = [query for query in qrels if query not in queries]
        if missing or not qrels:
            raise DataError(f"{source.dataset_id()}: {len(missing)} of {len(qrels)} labelled queries have no text")
        return Labels(queries, qrels)


def _load(key: str, name: str) -> Any:
    import ir_datasets

    try:
        return ir_datasets.load(name)
    except (KeyError, ImportError) as error:
        remedy = "not in the catalogue of ir_datasets (https://ir-datasets.com)"
        raise ConfigError(key, name, remedy) from error


def _is_labelled(dataset: Any) -> bool:
    return dataset.has_queries() and dataset.has_qrels()
