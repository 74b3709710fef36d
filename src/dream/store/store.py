"""A store is a corpus cut into passages and windows, with the ids of both tokenizers, as memory maps."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.batch import TokenBatch
from dream.store.contexts import OPENINGS
from dream.store.questions import Questions
from dream.store.ragged import Strings, gather_tokens
from dream.store.tables import ENCODER, PASSAGE, SCORER, WINDOW
from dream.utils.errors import DataError

# What the language model is asked about a window with context x and continuation y, given a passage d: log p(y | d, x),
# log p(x | d), or log p(x, y | d).
TARGETS = ("continuation", "context", "both")


class Store:
    """Read-only view of a store directory. The ids of documents, passages and windows are rows of its tables.

    Token ranges are positions in the token stream of the whole corpus. Character ranges are positions in the document.

    Args:
        path: The directory.
        language: Language of the corpus, for BM25; None: unknown. The files do not depend on it.
        target: One of `TARGETS`: the tokens of a window whose log-likelihood the language model gives.
        questions: Folder of questions about passages, see `ask`.

    Raises:
        DataError: The directory is not a complete store.
    """

    def __init__(self, path: Path, language: str | None = None, target: str = "continuation",
                 questions: Path | None = None) -> None:  # fmt: skip
        self.path, self.language, self.target = path, language, target
        try:
            self.manifest = json.loads((path / "manifest.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise DataError(f"{path}: not a complete store ({error}); delete the folder and run again") from error
        self.hash: str = self.manifest["hash"]
        self.passages = self._map("passages", PASSAGE)
        self.windows = self._map("windows", WINDOW)
        same = self.manifest["same_tokenizer"]
        self.tokens = [
            self._map(name, np.dtype(self.manifest["token_dtypes"][side]))
            for side, name in enumerate(["encoder_ids", "encoder_ids" if same else "scorer_ids"])
        ]
        self.pad_ids: list[int] = self.manifest["pad_ids"]
        self.questions = Questions(questions) if questions else None

    def ask(self, questions: Questions) -> None:
        """Add questions as windows: their ids follow those of the windows that are pieces of documents.

        A question is a context. Its continuation starts with the passage that it was written about, and can be longer.
        No passage overlaps a question.
        """
        self.questions = questions

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        file = self.path / f"{name}.bin"
        if file.stat().st_size == 0:
            return np.empty(0, dtype=dtype)
        return np.memmap(file, dtype=dtype, mode="r")

    def __reduce__(self):
        return Store, (self.path, self.language, self.target, self.questions and self.questions.path)

    @property
    def longest_window(self) -> tuple[int, int]:
        """Maximum numbers of tokens of `scored_tokens`: (given, scored)."""
        _, context, _, continuation = self.manifest["lengths"]
        if self.questions:
            context = max(context, self.questions.counts(SCORER).max(initial=0))
        return {"continuation": (context, continuation), "context": (0, context),
                "both": (0, context + continuation)}[self.target]  # fmt: skip

    @property
    def scoring_hash(self) -> str:
        """Hash of everything in the store that log-likelihoods depend on: `hash`, and what is asked."""
        parts = [self.hash, *([self.target] if self.target != "continuation" else [])]
        return "-".join([*parts, *([self.questions.hash] if self.questions else [])])

    @cached_property
    def texts(self) -> Strings:
        return Strings(self.path / "texts.bin", self._map("text_ends", np.dtype("<i8")))

    @cached_property
    def document_names(self) -> Strings:
        return Strings(self.path / "ids.bin", self._map("id_ends", np.dtype("<i8")))

    @cached_property
    def titles(self) -> Strings:
        return Strings(self.path / "titles.bin", self._map("title_ends", np.dtype("<i8")))

    @cached_property
    def passage_documents(self) -> np.ndarray:
        """Document row of each passage; int64, (passages,), in memory."""
        return np.ascontiguousarray(self.passages["document"])

    @cached_property
    def readings(self) -> np.ndarray:
        """The part of each passage that is read in training: rows like those of `passages`.

        If the language model is asked for a title or a beginning, passages are read without it. Then a document's first
        passage can be a candidate of its own window: the model has to understand it and cannot copy from it. A passage
        that consists only of the title or beginning is read as it is.
        """
        if self.target != "context" or self.manifest.get("context") not in OPENINGS or not len(self.windows):
            return self.passages
        rows = np.array(self.passages)
        firsts, _ = self.passages_of(self.windows["document"])
        middles, ends = self.windows["tokens"][:, :, 1], rows["tokens"][firsts, :, 1]
        longer = (middles < ends).all(1)
        rows["tokens"][firsts[longer], :, 0] = middles[longer]
        rows["characters"][firsts[longer], 0] = self.windows["characters"][longer, 1]
        return rows

    @cached_property
    def document_start_windows(self) -> np.ndarray:
        """The first window of each document that has windows; int64, (documents,), in memory."""
        return np.flatnonzero(np.diff(self.windows["document"], prepend=-1))

    @cached_property
    def encoder_document_frequency(self) -> np.ndarray:
        """Number of passages with each token of the encoder's vocabulary; float64, (vocabulary,)."""
        return np.load(self.path / "encoder_df.npy", allow_pickle=False).astype(np.float64)

    def cache_folder(self, kind: str) -> Path:
        """Folder of one kind of cache that depends on this store, e.g. `bm25`, next to the folder of all stores."""
        return self.path.parent.parent / kind

    def passage_text(self, passage_id: int) -> str:
        row = self.passages[passage_id]
        return self.texts[int(row["document"])][slice(*row["characters"])]

    def window_rows(self, window_ids_B: np.ndarray) -> np.ndarray:
        """Rows of the window table. A question has its passage's document and tokens, and no characters (-1)."""
        if not self.questions:
            return self.windows[window_ids_B]
        passage_B = self.asked_passages(window_ids_B)
        is_piece = passage_B < 0
        rows = np.zeros(len(window_ids_B), dtype=WINDOW)
        rows[is_piece] = self.windows[window_ids_B[is_piece]]
        passages = self.passages[passage_B[~is_piece]]
        rows["document"][~is_piece], rows["characters"][~is_piece] = passages["document"], -1
        rows["tokens"][~is_piece] = passages["tokens"][:, :, [0, 0, 1]]
        return rows

    def asked_passages(self, window_ids_B: np.ndarray) -> np.ndarray:
        """passage_B: the passage that a question was written about; -1 for pieces of documents."""
        passage_B = np.full(len(window_ids_B), -1, dtype=np.int64)
        if self.questions:
            is_question = window_ids_B >= len(self.windows)
            passage_B[is_question] = self.questions.passages_Q[window_ids_B[is_question] - len(self.windows)]
        return passage_B

    def _question(self, window_id: int) -> int | None:
        """Number of the question with this window id; None for a piece of a document."""
        return window_id - len(self.windows) if self.questions and window_id >= len(self.windows) else None

    def window_text(self, window_id: int) -> tuple[str, str]:
        """(context, target)"""
        if (question := self._question(window_id)) is not None:
            return self.questions.texts[question], ""  # type: ignore[union-attr]
        row = self.windows[window_id]
        text = self.texts[int(row["document"])]
        start, middle, end = row["characters"]
        return text[start:middle], text[middle:end]

    def scored_text(self, window_id: int) -> tuple[str, str]:
        """(text of the window that the language model reads first, text whose log-likelihood it gives)"""
        return self._asked(*self.window_text(window_id))

    def _asked(self, context: Any, continuation: Any) -> tuple[Any, Any]:
        if self.target == "continuation":
            return context, continuation
        if self.target == "context":
            return context[:0], context
        both = context + continuation if isinstance(context, str) else np.concatenate([context, continuation])
        return context[:0], both

    def passage_tokens(self, passage_id: int, side: int) -> np.ndarray:
        start, end = self.passages["tokens"][passage_id, side]
        return self.tokens[side][start:end]

    def window_tokens(self, window_id: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """(context ids, target ids)"""
        if (question := self._question(window_id)) is not None:
            ids = self.questions.tokens(question, side)  # type: ignore[union-attr]
            return ids, ids[:0]
        start, middle, end = self.windows["tokens"][window_id, side]
        return self.tokens[side][start:middle], self.tokens[side][middle:end]

    def passages_of(self, documents: Any) -> tuple[Any, Any]:
        """(first, end): a document's passages have the ids first ≤ id < end, in text order. Arrays for an array."""
        first, end = (np.searchsorted(self.passage_documents, documents, side=side) for side in ("left", "right"))
        return first, end

    def document_of(self, window_id: int) -> int:
        """The row of the document that a window comes from."""
        return int(self.window_rows(np.array([window_id]))["document"][0])

    def read_tokens(self, passage_id: int, side: int) -> np.ndarray:
        """Tokens of the part of a passage that is read in training: see `readings`."""
        start, end = self.readings["tokens"][passage_id, side]
        return self.tokens[side][start:end]

    def scored_tokens(self, window_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(scorer ids that the language model reads first, ids whose log-likelihood it gives): see `TARGETS`."""
        return self._asked(*self.window_tokens(window_id, SCORER))

    def scored_counts(self, window_ids_B: np.ndarray) -> np.ndarray:
        """Number of tokens of each window whose log-likelihood the language model gives; int64."""
        start_B, middle_B, end_B = self.window_rows(window_ids_B)["tokens"][:, SCORER].T
        counts = {"continuation": end_B - middle_B, "context": middle_B - start_B, "both": end_B - start_B}[self.target]
        for b in np.flatnonzero(window_ids_B >= len(self.windows)):
            counts[b] = len(self.window_tokens(int(window_ids_B[b]), SCORER)[0])
        return counts

    def continuation(self, window_id: int, longest: int) -> np.ndarray:
        """The first `longest` encoder ids of the document's text, from the beginning of the window's target."""
        row = self.window_rows(np.array([window_id]))[0]
        middle = row["tokens"][ENCODER, 1]
        last_passage = np.searchsorted(self.passage_documents, row["document"], side="right") - 1
        return self.tokens[ENCODER][middle : min(middle + longest, self.passages["tokens"][last_passage, ENCODER, 1])]

    def passage_batch(
        self, passage_ids: Sequence[int] | np.ndarray | Tensor, longest: int, training: bool = False
    ) -> TokenBatch:
        """The first `longest` encoder tokens of each passage; in training, of its part in `readings`."""
        if isinstance(passage_ids, torch.Tensor):
            passage_ids = passage_ids.cpu().numpy()
        table = self.readings if training else self.passages
        starts_B, ends_B = table["tokens"][np.asarray(passage_ids, dtype=np.int64), ENCODER].T
        return gather_tokens(self.tokens[ENCODER], starts_B, ends_B, longest, self.pad_ids[ENCODER])

    def rows_of(self, document_ids: Sequence[str]) -> dict[str, int]:
        """Document rows by the ids of the corpus. The id of a duplicate gives the row of the copy that was kept.

        All ids are read once. Unknown ids are not in the result.
        """
        wanted = set(document_ids)
        aliases = self.path / "aliases.jsonl"
        rows = {}
        with aliases.open(encoding="utf-8") as lines:
            for line in lines:
                dropped, kept = json.loads(line)
                if dropped in wanted:
                    rows[dropped] = kept
        names = self.document_names
        for row in range(len(names)):
            if names[row] in wanted:
                rows[names[row]] = row
        return rows
