"""Builds a store: documents in, memory maps out, one batch of documents in memory at a time."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dream.corpora.base import Corpus, Document
from dream.errors import ConfigError, DataError
from dream.files import fingerprint, new_directory, write_json
from dream.runtime import progress, say
from dream.store.cut import carry_over, cut_passages, cut_windows, word_starts
from dream.store.ragged import ArrayWriter
from dream.store.store import ENCODER, PASSAGE, SCORER, WINDOW, Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LAYOUT = 1  # raise when the files or the cuts below change
BATCH_CHARACTERS = 2_000_000
BATCH_DOCUMENTS = 2_000


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
) -> Store:
    """The store of this corpus, tokenizers and lengths below `folder`; built first where it is not there yet.

    `passage_tokens` counts the encoder's tokens, the window's three lengths the scorer's.
    """
    description = {
        "layout": LAYOUT,
        "corpus": corpus.fingerprint(),
        "deduplicate": corpus.deduplicate,
        "tokenizers": [tokenizer_fingerprint(encoder_tokenizer), tokenizer_fingerprint(scorer_tokenizer)],
        "lengths": [passage_tokens, context_tokens, min_context_tokens, target_tokens],
    }
    path = folder / f"{corpus.name}-{fingerprint(description)}"
    if not path.exists():
        builder = _Builder(encoder_tokenizer, scorer_tokenizer, description)
        with new_directory(path) as aside:
            builder.build(aside, corpus)
    return Store(path)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash of everything a fast tokenizer does to text."""
    return fingerprint(json.loads(tokenizer.backend_tokenizer.to_str()))


class _Builder:
    def __init__(
        self,
        encoder_tokenizer: "PreTrainedTokenizerFast",
        scorer_tokenizer: "PreTrainedTokenizerFast",
        description: dict,
    ) -> None:
        self.description = description
        self.same = len(set(description["tokenizers"])) == 1
        self.tokenizers = [encoder_tokenizer] if self.same else [encoder_tokenizer, scorer_tokenizer]
        self.dtypes = [np.dtype("<u2" if len(t) <= 2**16 else "<u4") for t in (encoder_tokenizer, scorer_tokenizer)]
        self.pad_ids = [t.pad_token_id or 0 for t in (encoder_tokenizer, scorer_tokenizer)]
        self.document_frequency = np.zeros(len(encoder_tokenizer), dtype=np.int64)
        self.positions = [0, 0]  # tokens written so far, per side
        self.document_rows = 0
        self.character_ends = {"text": 0, "id": 0, "title": 0}
        self.counts = {"documents_read": 0, "empty": 0, "duplicates": 0}
        self.seen: dict[int, int] = {}  # 64-bit text hash -> row; about 100 bytes a document
        self.writers: dict[str, ArrayWriter] = {}

    def build(self, folder: Path, corpus: Corpus) -> None:
        say(f"Preparing the store of corpus {corpus.name}: tokenising and cutting {corpus.size_bytes() / 1e6:.1f} MB")
        self._open(folder)
        bar = progress(total=corpus.size_bytes(), unit="B", unit_scale=True, desc="preparing")
        with (folder / "aliases.jsonl").open("w") as aliases, _parallel_tokenizers(), bar:
            for batch in _batches(corpus.documents()):
                kept = [document for document in batch if self._keep(document, corpus.deduplicate, aliases)]
                if kept:
                    self._write(kept)
                bar.update(sum(len(document.text) for document in batch))
        for writer in self.writers.values():
            writer.file.close()
        np.save(folder / "encoder_df.npy", self.document_frequency)
        rows = {name: self.writers[name].rows for name in ("passages", "windows")}
        self._refuse_unusable(corpus, rows)
        manifest = {
            "hash": fingerprint(self.description),
            **self.description,
            "same_tokenizer": self.same,
            "token_dtypes": [dtype.str for dtype in self.dtypes],
            "pad_ids": self.pad_ids,
            "counts": {**self.counts, "documents": self.document_rows, **rows, "encoder_tokens": self.positions[0]},
        }
        write_json(folder / "manifest.json", manifest)
        say("  " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in manifest["counts"].items()))

    def _open(self, folder: Path) -> None:
        tables = {"passages": PASSAGE, "windows": WINDOW, "encoder_ids": self.dtypes[ENCODER]}
        if not self.same:
            tables["scorer_ids"] = self.dtypes[SCORER]
        tables |= {f"{kind}s" if kind != "id" else "ids": np.dtype("u1") for kind in self.character_ends}
        tables |= {f"{kind}_ends": np.dtype("<i8") for kind in self.character_ends}
        self.writers = {name: ArrayWriter(folder / f"{name}.bin", dtype) for name, dtype in tables.items()}

    def _keep(self, document: Document, deduplicate: bool, aliases) -> bool:
        """Count the document, and say whether it goes in. Rows are given here, in the order of the stream."""
        self.counts["documents_read"] += 1
        if not document.text.strip():
            self.counts["empty"] += 1
            return False
        if deduplicate:
            words = " ".join(document.text.split()).encode()
            key = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest())
            if key in self.seen:
                self.counts["duplicates"] += 1
                aliases.write(json.dumps([document.id, self.seen[key]]) + "\n")
                return False
            self.seen[key] = self.document_rows
        self.document_rows += 1
        return True

    def _write(self, documents: list[Document]) -> None:
        first_row = self.document_rows - len(documents)
        texts = [document.text for document in documents]
        self._write_strings("text", texts)
        self._write_strings("id", [document.id for document in documents])
        self._write_strings("title", [document.title for document in documents])
        encodings = [t.backend_tokenizer.encode_batch(texts, add_special_tokens=False) for t in self.tokenizers]
        for number, text in enumerate(texts):
            ids = [np.asarray(side[number].ids, dtype=np.int64) for side in encodings]
            starts = [np.asarray(side[number].offsets, dtype=np.int64).reshape(-1, 2)[:, 0] for side in encodings]
            if not len(ids[0]) or not len(ids[-1]):
                continue  # nothing a tokenizer knows, e.g. control characters: no passage, but the row stays
            self._cut(first_row + number, text, ids, starts)

    def _cut(self, row: int, text: str, ids: list[np.ndarray], starts: list[np.ndarray]) -> None:
        lengths = self.description["lengths"]
        encoder, scorer = (0, 0) if self.same else (0, 1)
        boundaries = [word_starts(text, side) for side in starts]
        passages = np.array(cut_passages(len(ids[encoder]), boundaries[encoder], lengths[0]))
        windows = np.array(cut_windows(len(ids[scorer]), boundaries[scorer], *lengths[1:]), dtype=np.int64).reshape(
            -1, 3
        )
        for table, dtype, cuts, native in (
            ("passages", PASSAGE, passages, encoder),
            ("windows", WINDOW, windows, scorer),
        ):
            rows = np.zeros(len(cuts), dtype=dtype)
            rows["document"] = row
            rows["characters"] = np.append(starts[native], len(text))[cuts]
            for side in (ENCODER, SCORER):
                own = side % len(starts)
                rows["tokens"][:, side] = cuts if own == native else carry_over(cuts, starts[native], starts[own])
                rows["tokens"][:, side] += self.positions[side]
            self.writers[table].append(rows)
        for start, end in passages:
            self.document_frequency[np.unique(ids[encoder][start:end])] += 1
        self.writers["encoder_ids"].append(ids[encoder])
        if not self.same:
            self.writers["scorer_ids"].append(ids[scorer])
        self.positions = [self.positions[0] + len(ids[encoder]), self.positions[1] + len(ids[scorer])]

    def _write_strings(self, kind: str, strings: list[str]) -> None:
        encoded = [string.encode("utf-8", "replace") for string in strings]
        self.writers["ids" if kind == "id" else f"{kind}s"].append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        ends = np.cumsum([len(string) for string in encoded]) + self.character_ends[kind]
        self.writers[f"{kind}_ends"].append(ends)
        self.character_ends[kind] = int(ends[-1])

    def _refuse_unusable(self, corpus: Corpus, rows: dict[str, int]) -> None:
        if not self.document_rows:
            raise DataError(f"corpus {corpus.name} is empty: {self.counts['documents_read']} documents were read, "
                            "none of them with text; check corpus.path and corpus.text_fields")  # fmt: skip
        if self.document_rows == 1:
            raise DataError(f"corpus {corpus.name} has only one document, so that no window has a candidate from "
                            "another one; split it, e.g. corpus=text corpus.split_by=blank_lines")  # fmt: skip
        if not rows["windows"]:
            lengths = self.description["lengths"]
            raise ConfigError("data.target_tokens", lengths[3], f"no document of corpus {corpus.name} has "
                              f"{lengths[2] + lengths[3]} tokens, so there is no window; lower it or "
                              "data.min_context_tokens")  # fmt: skip


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Batches bounded in characters and in number; a document longer than the bound is a batch of its own."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def sample_texts(corpus: Corpus, most_bytes: int) -> Iterator[str]:
    """Texts of about `most_bytes` spread evenly over the corpus, for training a tokenizer."""
    every = max(1, -(-corpus.size_bytes() // most_bytes))
    for document in islice(corpus.documents(), 0, None, every):
        yield document.text


@contextmanager
def _parallel_tokenizers() -> Iterator[None]:
    """Let fast tokenizers use every core: safe here, because nothing forks while a store is built."""
    before = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before
