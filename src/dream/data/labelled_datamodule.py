"""The supervised baseline: trains on labelled queries and their relevant documents instead of windows.

Shape suffixes: B examples of a step, Q labelled queries.
"""

from typing import Any, Literal

import numpy as np

from dream.corpora.base import Corpus, Labels
from dream.data.window_datamodule import Examples, WindowDataModule, WindowStream
from dream.indexes.bm25 import BM25Index
from dream.store.permutation import permute
from dream.store.store import ENCODER, Store
from dream.utils.errors import DataError, require
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)


class PairStream(WindowStream):
    """In each epoch, every query once, in a seeded order, with the next one of its relevant documents.

    The context is the query. The continuation is the start of the passage that represents the document.
    """

    def __init__(self, queries: list[np.ndarray], passages: list[np.ndarray], **stream: Any) -> None:
        super().__init__(**stream)
        self.queries, self.passages = queries, passages

    def examples_at(self, positions: np.ndarray, batch: int) -> Examples:
        queries = permute(self.seed, positions, len(self.queries))
        turns = positions // len(self.queries)
        chosen = [self.passages[q][turn % len(self.passages[q])] for q, turn in zip(queries, turns, strict=True)]
        texts = [self.store.passage_tokens(int(passage), ENCODER)[: self.continuation_tokens] for passage in chosen]
        documents = self.store.passage_documents[np.array(chosen, dtype=np.int64)]
        asked = [self.queries[q][: self.max_query_tokens] for q in queries]  # as a search cuts them
        return queries.astype(np.int64), documents, asked, texts


class LabelledDataModule(WindowDataModule):
    """Streams (query, relevant passage) pairs.

    A query is left out if another split has the same id or text. So nothing of dev and test is used for training.

    Args:
        split: the labels to train on.
        passage: which passage represents a relevant document: the `first`, or the `best` by BM25.
        corpus: a corpus with labels.
        **windows: the other arguments of WindowDataModule.
    """

    has_targets = False

    def __init__(self, split: str, passage: Literal["first", "best"], corpus: Corpus, **windows: Any) -> None:
        super().__init__(corpus, **windows)
        splits = corpus.splits()
        require(split in splits, "data.split", split, f"corpus {corpus.name} has {', '.join(splits) or 'no labels'}; "
                "name the labels to train on, e.g. corpus.qrels={train: train.tsv}")  # fmt: skip
        require(passage in ("first", "best"), "data.passage", passage, "choose first or best")
        self.split, self.passage = split, passage
        self._pairs: tuple[list[np.ndarray], list[np.ndarray]] | None = None

    def stream(self, rank: int, world: int) -> PairStream:
        queries, passages = self.pairs
        return PairStream(
            queries,
            passages,
            store=self.store,
            seed=self.seed,
            batch_size=self.batch_size,
            max_query_tokens=self.max_query_tokens,
            continuation_tokens=self.continuation_tokens,
            document_start_fraction=self.start_fraction,
            limit=self.limit_windows,
            scored=0,
            start=self.consumed,
            rank=rank,
            world=world,
        )

    @property
    def distinct(self) -> int:
        return min(len(self.pairs[0]), self.limit_windows or len(self.pairs[0]))

    @property
    def pairs(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(token ids of each query, passage ids of each query: one for each of its relevant documents)"""
        if self._pairs is None:
            self._pairs = self._make_pairs()
        return self._pairs

    def _make_pairs(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        labels = self.corpus.labels(self.split)
        others = [self.corpus.labels(split) for split in self.corpus.splits() if split != self.split]
        wanted = unshared(labels, others)
        documents = relevant_documents(labels, wanted, self.store)
        log.info(f"Training on {len(documents):,} labelled queries of split {self.split}; left out: "
            f"{len(labels.qrels) - len(wanted):,} that another split also has, {len(wanted) - len(documents):,} "
            "without a relevant document in the corpus")  # fmt: skip
        if len(documents) < self.batch_size:
            raise DataError(f"split {self.split} of corpus {self.corpus.name}: {len(documents)} queries to train on, "
                            f"fewer than data.batch_size={self.batch_size}")  # fmt: skip
        texts = [labels.queries[query] for query in documents]
        ids: Any = self.tokenizers[ENCODER](texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [np.array(row, dtype=np.int64) for row in ids], self._passages(texts, list(documents.values()))

    def _passages(self, texts: list[str], documents: list[list[int]]) -> list[np.ndarray]:
        """For each query, the passages that represent its documents."""
        starts, ends = self.store.passages_of(np.arange(len(self.store.texts)))
        if self.passage == "first":
            return [starts[rows] for rows in documents]
        index = BM25Index.open_or_build(self.store)
        chosen = []
        bar = progress(texts, desc="finding each label's passage", leave=False)
        for text, rows in zip(bar, documents, strict=True):
            scores_N = index.scores_of(text)
            chosen.append(np.array([starts[row] + scores_N[starts[row] : ends[row]].argmax() for row in rows]))
        return chosen


def unshared(labels: Labels, others: list[Labels]) -> list[str]:
    """Ids of the queries whose id and text are in no other split."""
    ids = {query for other in others for query in other.qrels}
    texts = {_plain(text) for other in others for text in other.queries.values()}
    return [query for query in labels.qrels if query not in ids and _plain(labels.queries[query]) not in texts]


def relevant_documents(labels: Labels, queries: list[str], store: Store) -> dict[str, list[int]]:
    """For each query, the ascending rows of its relevant documents. Queries without one in the store are left out."""
    row_of = store.rows_of(list({document for query in queries for document in labels.qrels[query]}))
    found = {}
    for query in queries:
        rows = {row_of[name] for name, grade in labels.qrels[query].items() if grade > 0 and name in row_of}
        if rows:
            found[query] = sorted(rows)
    return found


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
