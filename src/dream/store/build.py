"""Builds a store from a corpus. Only a few batches of documents are in memory at a time."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dream.corpora.bad_documents import BadDocument, BadDocumentPolicy, by_reason
from dream.corpora.base import Corpus, Document
from dream.store.cut import Batch, cut_leads, cut_passages
from dream.store.document_ids import DocumentIds, text_hash
from dream.store.parallel import one_ahead, parallel_tokenizers
from dream.store.ragged import ArrayWriter
from dream.store.store import ENCODER, PASSAGE, SCORER, WINDOW, Store
from dream.store.tokens import BatchTokenizer, Tokens, bounded_batches, tokenizer_fingerprint
from dream.store.windows import WindowCutter
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
        builder = _Builder([BatchTokenizer(tokenizer) for tokenizer in tokenizers], description)
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
        self.passage_tokens, *windows = description["lengths"]
        self.cut_windows = WindowCutter(description.get("context", "span"), *windows)
        self.sides = tokenizers
        self.same = tokenizers[ENCODER].fingerprint == tokenizers[SCORER].fingerprint
        self.document_frequency = np.zeros(tokenizers[ENCODER].vocabulary, dtype=np.int64)
        self.positions = [0, 0]  # tokens written so far, per side
        self.document_rows = 0
        self.byte_ends = {"text": 0, "id": 0, "title": 0}
        self.counts = {"empty": 0, "duplicates": 0}
        self.without_window = 0
        self.seen: dict[int, int] = {}  # row by 64-bit hash of the text; about 170 bytes per document
        self.ids = DocumentIds()
        self.writers: dict[str, ArrayWriter] = {}

    def build(self, folder: Path, corpus: Corpus) -> None:
        megabytes = corpus.size_bytes() / 1e6
        log.info(f"Preparing the store of corpus {corpus.name}: tokenising and cutting {megabytes:.1f} MB")
        bar = progress(total=corpus.size_bytes(), unit="B", unit_scale=True, desc="preparing")
        with ExitStack() as open_files, parallel_tokenizers(), bar, ThreadPoolExecutor(1) as thread:
            self._open(folder, open_files)
            aliases = open_files.enter_context((folder / "aliases.jsonl").open("w", encoding="utf-8"))
            listing = open_files.enter_context((folder / REFUSED).open("w", encoding="utf-8"))
            policy = BadDocumentPolicy(corpus.on_bad_document, listing)
            batches = self._batches(corpus, aliases, policy, bar)
            for (first_row, documents), tokens in one_ahead(thread, self._tokenize, batches):
                self._write(first_row, documents, tokens)
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
            "encoder_tokens": self.positions[0],
        }
        return {
            "hash": fingerprint(self.description),
            **self.description,
            "same_tokenizer": self.same,
            "token_dtypes": [side.dtype.str for side in self.sides],
            "pad_ids": [side.pad_id for side in self.sides],
            "counts": counts,
            "refused": dict(policy.counts),
        }

    def _open(self, folder: Path, open_files: ExitStack) -> None:
        tables = {"passages": PASSAGE, "windows": WINDOW, "encoder_ids": self.sides[ENCODER].dtype}
        if not self.same:
            tables["scorer_ids"] = self.sides[SCORER].dtype
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
    ) -> Iterator[tuple[int, list[Document]]]:
        """Batches of kept documents: (row of the first one, documents)."""
        documents = corpus.documents(policy.handle)
        for batch in bounded_batches(documents, lambda document: len(document.text)):
            first_row = self.document_rows
            kept = [document for document in batch if self._keep(document, corpus.deduplicate, aliases, policy)]
            if kept:
                yield first_row, kept
            bar.update(sum(len(document.text) for document in batch))

    def _tokenize(self, batch: tuple[int, list[Document]]) -> list[Tokens]:
        texts = [document.text for document in batch[1]]
        encoder = self.sides[ENCODER](texts)
        return [encoder, encoder if self.same else self.sides[SCORER](texts)]

    def _write(self, first_row: int, documents: list[Document], tokens: list[Tokens]) -> None:
        texts = [document.text for document in documents]
        self._write_strings("text", texts)
        self._write_strings("id", [document.id for document in documents])
        self._write_strings("title", [document.title for document in documents])
        batch = Batch(texts, tokens)
        leads = self.description.get("passages_per_document")
        cut_text: Any = partial(cut_leads, count=leads) if leads else cut_passages
        passages = batch.table(ENCODER, partial(cut_text, longest=self.passage_tokens), PASSAGE)
        windows = self.cut_windows(batch, documents)
        self.without_window += len(documents) - len(np.unique(windows["document"]))
        if not leads:
            self._count_passages(tokens[ENCODER].ids_T, passages["tokens"][:, ENCODER])
        for table, rows in (("passages", passages), ("windows", windows)):
            rows["document"] += first_row
            rows["tokens"] += np.array(self.positions)[:, None]
            self.writers[table].append(rows)
        for side, name in enumerate(["encoder_ids"] if self.same else ["encoder_ids", "scorer_ids"]):
            self.writers[name].append(tokens[side].ids_T)
        self.positions = [written + len(side.ids_T) for written, side in zip(self.positions, tokens, strict=True)]

    def _count_passages(self, ids_T: np.ndarray, ranges: np.ndarray) -> None:
        """For each token, add the number of passages that contain it. The ranges cover all of `ids_T` in order."""
        passage_T = np.repeat(np.arange(len(ranges)), ranges[:, 1] - ranges[:, 0])
        order_T = np.argsort(ids_T, kind="stable")
        ids_T, passage_T = ids_T[order_T], passage_T[order_T]
        first_T = np.ones(len(ids_T), dtype=bool)
        first_T[1:] = (ids_T[1:] != ids_T[:-1]) | (passage_T[1:] != passage_T[:-1])
        self.document_frequency += np.bincount(ids_T[first_T], minlength=len(self.document_frequency))

    def _write_strings(self, kind: str, strings: list[str]) -> None:
        encoded = [string.encode() for string in strings]
        self.writers[f"{kind}s"].append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        ends = np.cumsum([len(string) for string in encoded]) + self.byte_ends[kind]
        self.writers[f"{kind}_ends"].append(ends)
        self.byte_ends[kind] = int(ends[-1])

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
        self.cut_windows.require_enough(rows["windows"], self.document_rows, corpus.name)


def sample_texts(corpus: Corpus, most_bytes: int) -> Iterator[str]:
    """Yield texts of about `most_bytes` bytes, spread evenly over the corpus, for training a tokenizer."""
    every = max(1, -(-corpus.size_bytes() // most_bytes))
    for document in islice(corpus.documents(), 0, None, every):
        yield document.text
