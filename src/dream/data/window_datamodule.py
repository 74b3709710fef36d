"""Streams the windows of a corpus in a seeded, endless order. The only state is the number of windows consumed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dream.batch import WindowBatch
from dream.corpora.base import Corpus
from dream.data.shares import check_shares, share_of
from dream.store.build import expected_hash, open_or_build
from dream.store.contexts import CONTEXTS
from dream.store.permutation import permute
from dream.store.ragged import pad_tokens
from dream.store.store import ENCODER, TARGETS, Store
from dream.utils.errors import require, require_count
from dream.utils.logging import get_logger
from dream.utils.signals import ignore_in_worker

log = get_logger(__name__)

AUTO = "auto"  # a value of `document_start_fraction`
MOST_STARTS = 0.5  # of the windows
STARTS_IN_A_PASS = 2.5  # most times that a start is drawn in one pass over the windows (RESULTS.md)

# window ids, document rows, encoder ids of contexts and of continuations
Examples = tuple[np.ndarray, np.ndarray, Sequence[np.ndarray], Sequence[np.ndarray]]


class WindowStream(IterableDataset):
    """Endless stream of full batches of windows.

    All ranks take the same batches, and each its share of their windows: see `shares.share_of`. Each rank's loader
    workers take the batches in turn, and the loader reads from its workers in turn. So the order depends neither on the
    number of ranks nor on the number of workers.

    Args:
        store: the store that contains the windows.
        seed: seed of the order.
        batch_size: windows of a batch, on all ranks together.
        max_query_tokens: longer contexts and continuations are cut, in encoder tokens.
        continuation_tokens: length of a continuation, in encoder tokens.
        document_start_fraction: share of the windows that start a document. They have their own random order. The
            other windows are drawn from all windows.
        limit: repeat the first n windows; None: all windows.
        scored: number of scored windows of a batch, on all ranks together; the first ones.
        start: position of the first window: the number of windows that the run has consumed.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(
        self,
        store: Store,
        seed: int,
        batch_size: int,
        max_query_tokens: int,
        continuation_tokens: int,
        document_start_fraction: float,
        limit: int | None,
        scored: int,
        start: int,
        rank: int,
        world: int,
    ) -> None:
        self.store, self.seed, self.batch_size, self.max_query_tokens = store, seed, batch_size, max_query_tokens
        self.continuation_tokens, self.document_start_fraction = continuation_tokens, document_start_fraction
        self.limit, self.start, self.rank, self.world = limit, start, rank, world
        self.scored = min(scored, batch_size)
        self.slots = share_of(batch_size, self.scored, rank, world)

    def __iter__(self) -> Iterator[WindowBatch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield self.batch(number)
            number += workers

    def batch(self, number: int) -> WindowBatch:
        """This rank's share of the `number`-th batch."""
        step_start = self.start + number * self.batch_size
        positions = step_start + self.slots
        examples, documents, contexts, continuations = self.examples_at(
            positions % self.limit if self.limit else positions, step_start // self.batch_size
        )
        pad_id = self.store.pad_ids[ENCODER]
        return WindowBatch(
            consumed=step_start + self.batch_size,
            window_ids_B=torch.from_numpy(examples),
            document_ids_B=torch.from_numpy(documents),
            context=pad_tokens([context[-self.max_query_tokens :] for context in contexts], pad_id),
            continuation=pad_tokens([text[: self.max_query_tokens] for text in continuations], pad_id),
            positions_B=torch.from_numpy(positions),
        )

    def examples_at(self, positions: np.ndarray, batch: int) -> Examples:
        """The examples of this rank's slots of a batch: their positions in the stream, and the number of the batch."""
        windows = self.windows_at(positions)
        if self.store.questions:
            if self.limit:
                batch %= -(-self.limit // self.batch_size)
            is_scored = self.slots < self.scored
            turns = batch * self.scored + self.slots[is_scored]
            windows[is_scored] = len(self.store.windows) + permute(self.seed, turns, len(self.store.questions))
        contexts = [self.store.window_tokens(window, ENCODER)[0] for window in windows]
        continuations = [self.store.continuation(window, self.continuation_tokens) for window in windows]
        return windows, self.store.window_rows(windows)["document"].astype(np.int64), contexts, continuations

    def windows_at(self, positions: np.ndarray) -> np.ndarray:
        """Window ids at these positions of an order that interleaves two infinite permutations."""
        starts_before = np.floor(positions * self.document_start_fraction).astype(np.int64)
        is_start = np.floor((positions + 1) * self.document_start_fraction).astype(np.int64) > starts_before
        starts, windows = self.store.document_start_windows, np.empty(len(positions), dtype=np.int64)
        windows[is_start] = starts[permute(self.seed, starts_before[is_start], len(starts))]
        windows[~is_start] = permute(self.seed, (positions - starts_before)[~is_start], len(self.store.windows))
        return windows


class WindowDataModule(L.LightningDataModule):
    """Opens or builds the store of a corpus, and streams its windows. State: `consumed`.

    Args:
        corpus: the source of the documents.
        encoder_tokenizer: tokenizer for passages, contexts and continuations.
        scorer_tokenizer: tokenizer for passages, contexts and targets.
        max_query_tokens: longer contexts and continuations are cut, in encoder tokens.
        scored_windows: number of scored windows of a step, on all ranks together; the first ones; None: all.
        stores_dir: folder of the cached stores.
        batch_size: windows of a step, on all ranks together.
        workers: number of loader processes.
        limit_windows: train only on the first n windows of the order, repeatedly; None: all windows.
        questions: take the scored windows in turn from questions about this many passages, written by the language
            model; None: windows of documents.
        document_start_fraction: share of the windows that start a document. `auto`: half. It is less if documents are
            long: in one pass over the windows, a start is drawn at most 2.5 times.
        continuation_tokens: encoder tokens of a continuation.
        seed: seed of the order.
        passage_tokens: maximum length of a passage, in encoder tokens.
        context_tokens: maximum length of a context, in scorer tokens.
        min_context_tokens: minimum length of a context, in scorer tokens.
        target_tokens: scorer tokens of a target.
        context: kind of the contexts, one of `CONTEXTS`.
        target: what the language model is asked, one of `TARGETS`.
    """

    has_targets = True  # whether windows have targets that the language model predicts

    def __init__(
        self,
        corpus: Corpus,
        encoder_tokenizer,
        scorer_tokenizer,
        max_query_tokens: int,
        scored_windows: int | None,
        stores_dir: str,
        batch_size: int,
        workers: int,
        limit_windows: int | None,
        questions: int | None,
        document_start_fraction: float | str,
        continuation_tokens: int,
        seed: int,
        passage_tokens: int,
        context_tokens: int,
        min_context_tokens: int,
        target_tokens: int,
        context: str,
        target: str,
    ) -> None:
        super().__init__()
        _check_order(batch_size, workers, limit_windows, questions, document_start_fraction, target)
        _check_cuts(continuation_tokens, passage_tokens, context_tokens, min_context_tokens, target_tokens, context)
        self.corpus, self.tokenizers = corpus, (encoder_tokenizer, scorer_tokenizer)
        self.max_query_tokens, self.stores_dir = max_query_tokens, Path(stores_dir)
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.limit_windows, self.document_start_fraction, self.continuation_tokens = (
            limit_windows,
            document_start_fraction,
            continuation_tokens,
        )
        self.target = target
        self.questions = questions
        check_shares(batch_size, scored_windows)
        self.scored = batch_size if scored_windows is None else scored_windows
        self.cuts: dict[str, Any] = {
            "passage_tokens": passage_tokens,
            "context_tokens": context_tokens,
            "min_context_tokens": min_context_tokens,
            "target_tokens": target_tokens,
            "context": context,
        }
        self.consumed = 0
        self._store: Store | None = None

    def prepare_data(self) -> None:
        if self._store is None:  # Lightning calls it again, but questions belong to the store that is open
            self._store = open_or_build(self.stores_dir, self.corpus, *self.tokenizers, **self.cuts, target=self.target)

    @property
    def store_hash(self) -> str:
        """Hash of the store, without opening or building it."""
        return expected_hash(self.corpus, *self.tokenizers, **self.cuts)

    @property
    def store_path(self) -> Path:
        """Folder of the store, which may not exist yet."""
        return self.stores_dir / f"{self.corpus.name}-{self.store_hash}"

    @property
    def lengths(self) -> list[int]:
        """Lengths of passages, contexts, shortest contexts and targets, in tokens."""
        return [self.cuts[key] for key in ("passage_tokens", "context_tokens", "min_context_tokens", "target_tokens")]

    @property
    def store(self) -> Store:
        """The store. It is opened or built on first use."""
        if self._store is None:
            self.prepare_data()
        assert self._store is not None
        return self._store

    @property
    def distinct(self) -> int:
        """Number of different windows in the stream."""
        return min(len(self.store.windows), self.limit_windows or len(self.store.windows))

    @property
    def start_fraction(self) -> float:
        """`document_start_fraction` as a number."""
        if self.document_start_fraction != AUTO:
            return float(self.document_start_fraction)
        starts, windows = len(self.store.document_start_windows), len(self.store.windows)
        return min(MOST_STARTS, STARTS_IN_A_PASS * starts / max(1, windows))

    def train_dataloader(self) -> DataLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        stream = self.stream(rank, world)
        return DataLoader(stream, batch_size=None, num_workers=self.workers, worker_init_fn=ignore_in_worker)

    def stream(self, rank: int, world: int) -> WindowStream:
        """This rank's share of the stream. It starts at the first window that the run has not consumed."""
        if self.document_start_fraction == AUTO and self.start_fraction < MOST_STARTS:
            log.info(f"{self.start_fraction:.0%} of the windows are beginnings of documents instead of half, because "
                     f"documents are long (data.document_start_fraction={MOST_STARTS} changes it)")  # fmt: skip
        return WindowStream(
            self.store,
            self.seed,
            self.batch_size,
            self.max_query_tokens,
            self.continuation_tokens,
            self.start_fraction,
            self.limit_windows,
            self.scored,
            self.consumed,
            rank,
            world,
        )

    def on_after_batch_transfer(self, batch: WindowBatch, dataloader_idx: int) -> WindowBatch:
        self.consumed = batch.consumed  # called when the loop takes a batch, not when a worker prefetches it
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed = state_dict["consumed"]


def _check_order(batch_size: int, workers: int, limit_windows: int | None,
                 questions: int | None, document_start_fraction: float | str, target: str) -> None:  # fmt: skip
    """Raise ConfigError if a setting of the order of windows is impossible."""
    require(batch_size > 1, "data.batch_size", batch_size, "at least 2 windows a step")
    require(workers >= 0, "data.workers", workers, "0 or more loader processes")
    require_count("data.limit_windows", limit_windows)
    require_count("data.questions", questions)
    require(questions is None or target == "context", "data.questions", questions,
            "set data.target=context: the language model is asked for the question")  # fmt: skip
    is_share = isinstance(document_start_fraction, int | float) and 0 <= document_start_fraction <= 1
    require(is_share or document_start_fraction == AUTO, "data.document_start_fraction", document_start_fraction,
            f"between 0 and 1, or {AUTO}")  # fmt: skip
    require(target in TARGETS, "data.target", target, f"choose one of {', '.join(TARGETS)}")


def _check_cuts(continuation_tokens: int, passage_tokens: int, context_tokens: int, min_context_tokens: int,
                target_tokens: int, context: str) -> None:  # fmt: skip
    """Raise ConfigError if a length or the kind of the contexts is impossible."""
    require(continuation_tokens > 0, "data.continuation_tokens", continuation_tokens, "at least 1 token")
    require(passage_tokens > 0, "data.passage_tokens", passage_tokens, "at least 1 token")
    require(target_tokens > 0, "data.target_tokens", target_tokens, "at least 1 token")
    require(0 < min_context_tokens <= context_tokens, "data.min_context_tokens", min_context_tokens,
            f"between 1 and data.context_tokens={context_tokens}")  # fmt: skip
    require(context in CONTEXTS, "data.context", context, f"choose one of {', '.join(CONTEXTS)}")
