"""The labelled queries of one split, ranked by any system and scored."""

from collections.abc import Sequence

import numpy as np
import torch

from dream.corpora.base import Corpus
from dream.encoders.base import Encoder
from dream.evaluation.metrics import Judgements, Ranking, mean_metrics, per_query_metrics
from dream.evaluation.ranking import rank_bm25, rank_dense
from dream.indexes.bm25 import BM25Index
from dream.indexes.snapshot import IndexHandle
from dream.store.store import Store
from dream.utils.errors import DataError


class LabelledQueries:
    """Queries and judgements of `split`, against the documents of `store`."""

    def __init__(self, corpus: Corpus, store: Store, split: str) -> None:
        self.name, self.store = split, store
        self.judgements = Judgements.of(corpus.labels(split), store)
        if not len(self.judgements):
            raise DataError(f"split {split} of corpus {corpus.name}: no query has a relevant document")

    def __len__(self) -> int:
        return len(self.judgements)

    @property
    def queries(self) -> Sequence[str]:
        return self.judgements.queries

    def by_bm25(self, index: BM25Index) -> Ranking:
        by_passage = index.unit == "passage"
        documents = self.store.passage_documents if by_passage else np.arange(len(self.store.texts))
        return rank_bm25(index, self.queries, documents)

    @torch.inference_mode()
    def by_encoder(self, encoder: Encoder, index: IndexHandle) -> Ranking:
        """Through the current snapshot of the index, which must be that of the encoder's current weights."""
        query_QD = encoder.embed_queries(list(self.queries))
        return rank_dense(index.search, query_QD, self.store.passage_documents)

    def score(self, ranking: Ranking) -> dict[str, float]:
        """Means over the queries that have a relevant document."""
        return mean_metrics(per_query_metrics(ranking, self.judgements))
