"""The labelled queries of one split: ranks them by a system, and scores the ranking."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch

from dream.corpora.base import Labels
from dream.encoders.base import Encoder
from dream.evaluation.metrics import DEPTH, Judgements, Ranking, mean_metrics, per_query_metrics
from dream.evaluation.ranking import leave_out, rank_bm25, rank_dense
from dream.indexes.bm25 import BM25Index
from dream.indexes.snapshot import IndexHandle
from dream.store.store import Store
from dream.utils.errors import DataError
from dream.utils.logging import get_logger

log = get_logger(__name__)

EXAMPLES = 3  # ids in a message


class HasLabels(Protocol):
    """A corpus with labels, or anything else that has them."""

    name: str

    def labels(self, split: str) -> Labels:
        """Queries and grades of one split."""
        ...


class HeldOutQuestions:
    """The held-out questions of a store as labels: only the passage that a question was written about is relevant."""

    name = "questions of the language model"

    def __init__(self, store: Store) -> None:
        self.store = store
        self.questions = store.questions.held_out if store.questions else []

    def labels(self, split: str) -> Labels:
        """All questions. The split has no meaning."""
        names, documents = self.store.document_names, self.store.passage_documents
        rows = [(f"question-{number}", *row) for number, row in enumerate(self.questions)]
        return Labels({name: text for name, text, _ in rows},
                      {name: {names[int(documents[passage])]: 1} for name, _, passage in rows})  # fmt: skip


class LabelledQueries:
    """Queries and judgements of a split, against the documents of a store.

    If relevant documents are missing in the store, they count as not found, and a warning is logged once. In some data
    sets (ArguAna, Quora), a query is itself a document: the same id, and the document ends with the query's text. It is
    left out of the query's ranking, as in BEIR's evaluation, unless it is labelled as relevant.

    Args:
        corpus: a corpus with labels.
        store: store of the documents of this corpus.
        split: name of the labelled split.
        most: maximum number of queries, drawn at random, always the same ones; None: all.

    Attributes:
        drawn_from: number of queries with a relevant document, before `most` are drawn.

    Raises:
        DataError: no query has a relevant document, or none of the relevant documents is in the store.
    """

    def __init__(self, corpus: HasLabels, store: Store, split: str, most: int | None = None) -> None:
        self.name, self.store = split, store
        self.judgements = Judgements.of(corpus.labels(split), store)
        if not len(self.judgements):
            raise DataError(f"split {split} of corpus {corpus.name}: no query has a relevant document")
        self._check_documents(corpus.name)
        self.drawn_from = len(self)
        self.judgements = self.judgements.sample(most or len(self))
        self.own_Q = self._own_documents()

    def _check_documents(self, corpus: str) -> None:
        missing = [document for absent in self.judgements.missing for document in absent]
        count = len(missing) + sum(map(len, self.judgements.grades))
        if len(missing) == count:
            own = self.store.document_names[0]
            raise DataError(
                f"split {self.name} of corpus {corpus}: none of the {count:,} relevant documents is in the corpus: the "
                f"labels name e.g. {missing[0]!r}, but the corpus has ids such as {own!r}; set corpus.id_field "
                "to the field with the labels' ids, or use the labels (qrels) of this corpus"
            )
        if missing:
            examples = ", ".join(map(repr, list(dict.fromkeys(missing))[:EXAMPLES]))
            _warn_once(
                f"split {self.name} of corpus {corpus}: {len(missing) / count:.1%} of the relevant documents "
                f"({len(missing):,} of {count:,}) are not in the corpus, e.g. {examples}: they count as not found"
            )

    def _own_documents(self) -> np.ndarray:
        """Row of the document that is the query itself; -1 if there is none, or if it is relevant."""
        row_of, judged = self.store.rows_of(self.judgements.query_ids), self.judgements
        own_Q = np.full(len(judged), -1, dtype=np.int64)
        for q, (name, query, grades) in enumerate(zip(judged.query_ids, judged.queries, judged.grades, strict=True)):
            row = row_of.get(name, -1)
            if row >= 0 and row not in grades and _words(self.store.texts[row]).endswith(_words(query)):
                own_Q[q] = row
        return own_Q

    def __len__(self) -> int:
        return len(self.judgements)

    @property
    def queries(self) -> Sequence[str]:
        """Texts of the queries that have a relevant document."""
        return self.judgements.queries

    def by_bm25(self, index: BM25Index) -> Ranking:
        """Rank by BM25. The index contains the store's passages or its documents."""
        by_passage = index.unit == "passage"
        documents = self.store.passage_documents if by_passage else np.arange(len(self.store.texts))
        return self._without_own(rank_bm25(index, self.queries, documents, self._depth))

    @torch.inference_mode()
    def by_encoder(self, encoder: Encoder, index: IndexHandle) -> Ranking:
        """Rank by embeddings. The index's current snapshot must be made by the encoder's current weights."""
        query_QD = encoder.embed_queries(list(self.queries))
        return self._without_own(rank_dense(index.search, query_QD, self.store.passage_documents, self._depth))

    @property
    def _depth(self) -> int:
        return DEPTH + int((self.own_Q >= 0).any())

    def _without_own(self, ranking: Ranking) -> Ranking:
        return leave_out(ranking, self.own_Q) if self._depth > DEPTH else ranking

    def score(self, ranking: Ranking) -> dict[str, float]:
        """Means over the queries that have a relevant document."""
        return mean_metrics(per_query_metrics(ranking, self.judgements))


def _words(text: str) -> str:
    return " ".join(text.split())


@cache
def _warn_once(message: str) -> None:
    """Log each message once in a process: several callbacks and stores may open the same split."""
    log.warning(message)
