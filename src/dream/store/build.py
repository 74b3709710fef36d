"""Builds a store from a corpus. Only a few batches of documents are in memory at a time."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy, by_reason
from dream.corpora.base import Corpus, Document
from dream.store.cutting import BatchCutter, CutBatch
from dream.store.document_ids import DocumentIds, text_hash
from dream.store.parallel import in_parallel, processes_for
from dream.store.ragged import ArrayWriter
from dream.store.store import Store
from dream.store.tables import ENCODER, PASSAGE, SCORER, WINDOW
from dream.store.tokens import BatchTokenizer, bounded_batches, tokenizer_fingerprint
from dream.utils.atomic_io import fingerprint, write_json
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import DataError
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LAYOUT = 3  # increase it when the files or the cuts change; cached stores are then rebuilt
REFUSED = "refused.jsonl"  # lists the bad documents that were left out, with file and line


def open_or_build(
    folder: Path,
    corpus: Corpus,
    encoder_tokenizer: "PreTrainedTokenizerFast",
    scorer_tokenizer: "PreTrainedTokenizerFast",
    *,
    passage_tokens: int,
    context_tokens: int,
    min_context_tokens: int,
    target_tokens: int,
    context: str = "span",
    target: str = "continuation",
) -> Store:
    """Open the store of this corpus, these tokenizers and cuts. It is built if it does not exist yet.

    Args:
        folder: Folder of all stores.
        corpus: The corpus. It is read only if the store is built.
        encoder_tokenizer: Cuts the passages.
        scorer_tokenizer: Cuts the windows.
        passage_tokens: Maximum length of a passage, in encoder tokens.
        context_tokens: Maximum length of a window's context, in scorer tokens.
        min_context_tokens: Minimum length of a context, in scorer tokens.
        target_tokens: Length of a window's target, in scorer tokens.
        context: Kind of the contexts, one of `contexts.CONTEXTS`.
        target: What the language model is asked: see `Store`. The files do not depend on it.

    Raises:
        DataError: The corpus is empty, cannot be read, or has a bad document that its policy does not skip.
        ConfigError: No document is long enough for a window, or the corpus has no contexts of this kind.
    """
    tokenizers = [encoder_tokenizer, scorer_tokenizer]
    lengths = [passage_tokens, context_tokens, min_context_tokens, target_tokens]
    store = _open_or_build(folder, corpus, tokenizers, _cuts(lengths, context))
    return Store(store.path, store.language, target)


def open_or_build_passages(
    folder: Path,
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    passage_tokens: int,
    passages_per_document: int | None,
) -> Store:
    """Open or build a store without windows, for search only. The other arguments are those of `open_or_build`.

    Args:
        passages_per_document: Keep only the first passages of each document; None keeps all.
    """
    cuts = {"lengths": [passage_tokens, 0, 0, 0], "passages_per_document": passages_per_document}
    return _open_or_build(folder, corpus, [tokenizer, tokenizer], cuts)


def expected_hash(
    corpus: Corpus, encoder_tokenizer: "PreTrainedTokenizerFast", scorer_tokenizer: "PreTrainedTokenizerFast", *,
    passage_tokens: int, context_tokens: int, min_context_tokens: int, target_tokens: int, context: str = "span",
) -> str:  # fmt: skip
    """The hash of the store that `open_or_build` would open or build."""
    lengths = [passage_tokens, context_tokens, min_context_tokens, target_tokens]
    return fingerprint(_describe(corpus, [encoder_tokenizer, scorer_tokenizer], _cuts(lengths, context)))


def _cuts(lengths: list[int], context: str) -> dict[str, Any]:
    """The part of a store's description that says how documents are cut."""
    return {"lengths": lengths} | ({} if context == "span" else {"context": context})


def _describe(corpus: Corpus, tokenizers: list["PreTrainedTokenizerFast"], cuts: dict[str, Any]) -> dict[str, Any]:
    """Everything that a store depends on."""
    return {
        "layout": LAYOUT,
        "corpus": corpus.fingerprint(),
        "deduplicate": corpus.deduplicate,
        "tokenizers": [tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers],
        **cuts,
    }


def _open_or_build(
    folder: Path, corpus: Corpus, tokenizers: list["PreTrainedTokenizerFast"], cuts: dict[str, Any]
) -> Store:
    description = _describe(corpus, tokenizers, cuts)
    path = folder / f"{corpus.name}-{fingerprint(description)}"
    if not verify_or_discard(path):
        sides = [BatchTokenizer(tokenizer) for tokenizer in dict.fromkeys(tokenizers)]  # one, if both are the same
        builder = _Builder([sides[0], sides[-1]], description)
        with new_directory(path) as unfinished:
            builder.build(unfinished, corpus)
    store = Store(path, getattr(corpus, "language", None))  # an own corpus need not have one
    if refused := store.manifest["refused"]:
        log.info(f"  bad documents left out of corpus {corpus.name}: {by_reason(refused)}; listed with file and line "
                 f"in {path / REFUSED}")  # fmt: skip
    return store


class _Builder:
    def __init__(self, tokenizers: list[BatchTokenizer], description: dict) -> None:
        self.description = description
        context, leads = description.get("context", "span"), description.get("passages_per_document")
        self.cutter = BatchCutter(tokenizers, description["lengths"], context, leads)
        self.document_frequency = np.zeros(tokenizers[ENCODER].vocabulary, dtype=np.int64)
        self.positions = np.zeros(2, dtype=np.int64)  # tokens written so far, per side
        self.document_rows = self.written = 0
        self.byte_ends = {"text": 0, "id": 0, "title": 0}
        self.counts = {"empty": 0, "duplicates": 0}
        self.without_window = self.found = 0
        self.seen: dict[int, int] = {}  # row by 64-bit hash of the text; about 170 bytes per document
        self.ids = DocumentIds()
        self.writers: dict[str, ArrayWriter] = {}

    def build(self, folder: Path, corpus: Corpus) -> None:
        size = corpus.size_bytes()
        processes = processes_for(size)
        with_them = f" with {processes} processes" if processes > 1 else ""
        log.info(f"Preparing the store of corpus {corpus.name}: tokenising and cutting {size / 1e6:.1f} MB{with_them}")
        bar = progress(total=size, unit="B", unit_scale=True, desc="preparing")
        with ExitStack() as open_files, bar, in_parallel(self.cutter, processes) as cut_all:
            self._open(folder, open_files)
            aliases = open_files.enter_context((folder / "aliases.jsonl").open("w", encoding="utf-8"))
            listing = open_files.enter_context((folder / REFUSED).open("w", encoding="utf-8"))
            policy = BadDocumentPolicy(corpus.on_bad_document, listing)
            for batch in cut_all(self._batches(corpus, aliases, policy, bar)):
                self._write(batch)
            bar.update(bar.total - bar.n)  # bytes of ids and markup, which were not counted above
        rows = {name: self.writers[name].rows for name in ("passages", "windows")}
        self.counts["refused"] = policy.counts.total()
        self._require_usable(corpus, rows, policy)
        np.save(folder / "encoder_df.npy", self.document_frequency)
        manifest = self._manifest(rows, policy)
        write_json(folder / "manifest.json", manifest)
        log.info("  " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in manifest["counts"].items()))

    def _manifest(self, rows: dict[str, int], policy: BadDocumentPolicy) -> dict[str, Any]:
        counts = {
            "documents_read": sum(self.counts.values()) + self.document_rows,
            **self.counts,
            "documents": self.document_rows,
            "documents_without_window": self.without_window,
            **rows,
            "encoder_tokens": int(self.positions[ENCODER]),
        }
        return {
            "hash": fingerprint(self.description),
            **self.description,
            "same_tokenizer": self.cutter.same,
            "token_dtypes": [side.dtype.str for side in self.cutter.sides],
            "pad_ids": [side.pad_id for side in self.cutter.sides],
            "counts": counts,
            "refused": dict(policy.counts),
        }

    def _open(self, folder: Path, open_files: ExitStack) -> None:
        tables = {"passages": PASSAGE, "windows": WINDOW, "encoder_ids": self.cutter.sides[ENCODER].dtype}
        if not self.cutter.same:
            tables["scorer_ids"] = self.cutter.sides[SCORER].dtype
        tables |= {f"{kind}s": np.dtype("u1") for kind in self.byte_ends}
        tables |= {f"{kind}_ends": np.dtype("<i8") for kind in self.byte_ends}
        for name, dtype in tables.items():
            self.writers[name] = open_files.enter_context(ArrayWriter(folder / f"{name}.bin", dtype))

    def _keep(self, document: Document, deduplicate: bool, aliases: TextIO, policy: BadDocumentPolicy) -> bool:
        """Count the document, and return whether the store keeps it. Kept documents get consecutive rows.

        Each document is counted once: as empty, duplicate, refused or kept.
        """
        words = document.text.split()
        if not words:
            self.counts["empty"] += 1
            return False
        key = text_hash(" ".join(words)) if deduplicate else 0
        row = self.seen.get(key, self.document_rows)
        try:
            self.ids.check(document, row)
        except BadDocument as bad:
            policy.handle(bad)
            return False
        if row != self.document_rows:
            self.counts["duplicates"] += 1
            aliases.write(json.dumps([document.id, row]) + "\n")
            return False
        if deduplicate:
            self.seen[key] = row
        self.document_rows += 1
        return True

    def _batches(
        self, corpus: Corpus, aliases: TextIO, policy: BadDocumentPolicy, bar: Any
    ) -> Iterator[list[Document]]:
        """Batches of kept documents."""
        documents = corpus.documents(policy.handle)
        for batch in bounded_batches(documents, lambda document: len(document.text)):
            kept = [document for document in batch if self._keep(document, corpus.deduplicate, aliases, policy)]
            if kept:
                yield kept
            bar.update(sum(len(document.text) for document in batch))

    def _write(self, batch: CutBatch) -> None:
        for kind, (encoded, lengths) in batch.strings.items():
            ends = np.cumsum(lengths) + self.byte_ends[kind]
            self.writers[f"{kind}s"].append(np.frombuffer(encoded, dtype=np.uint8))
            self.writers[f"{kind}_ends"].append(ends)
            self.byte_ends[kind] = int(ends[-1])
        self.without_window += batch.documents - len(np.unique(batch.windows["document"]))
        self.found += batch.found
        if batch.frequency:
            ids, counts = batch.frequency
            self.document_frequency[ids] += counts
        for table, rows in (("passages", batch.passages), ("windows", batch.windows)):
            rows["document"] += self.written
            rows["tokens"] += self.positions[:, None]
            self.writers[table].append(rows)
        for name, ids in zip(("encoder_ids", "scorer_ids"), batch.ids, strict=False):
            self.writers[name].append(ids)
        self.positions += batch.lengths
        self.written += batch.documents

    def _require_usable(self, corpus: Corpus, rows: dict[str, int], policy: BadDocumentPolicy) -> None:
        read, equal = sum(self.counts.values()) + self.document_rows, self.counts["duplicates"]
        bad = f" ({self.counts['refused']:,} bad ones were left out, first {policy.first})" if policy.first else ""
        if not self.document_rows:
            raise DataError(f"corpus {corpus.name} is empty: {read} documents were read, none of them with text{bad}; "
                            "check corpus.path and corpus.text_fields")  # fmt: skip
        if self.document_rows == 1:
            copies = f" ({equal:,} more are copies of it)" if equal else ""
            raise DataError(f"corpus {corpus.name} has only one document{copies}{bad}, so there are no candidates from "
                            "other documents; split it: corpus=text corpus.split_by=lines or blank_lines")  # fmt: skip
        self.cutter.cut_windows.require_enough(rows["windows"], self.found, self.document_rows, corpus.name)


def sample_texts(corpus: Corpus, most_bytes: int) -> Iterator[str]:
    """Yield texts of about `most_bytes` bytes, spread evenly over the corpus, for training a tokenizer."""
    every = max(1, -(-corpus.size_bytes() // most_bytes))
    for document in islice(corpus.documents(), 0, None, every):
        yield document.text
