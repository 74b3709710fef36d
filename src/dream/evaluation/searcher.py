"""Search with a trained run: dense, BM25, or both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dream.encoders.base import Side
from dream.evaluation.fusion import hybrid
from dream.evaluation.metrics import DEPTH, Ranking
from dream.evaluation.ranking import rank_bm25, rank_dense
from dream.runs.load import open_run
from dream.utils.errors import require

if TYPE_CHECKING:
    from dream.indexes.bm25 import BM25Index

MODES = ("dense", "bm25", "hybrid")


@dataclass(frozen=True)
class Hit:
    """A document that a search found.

    Attributes:
        id: the document's id in the corpus.
        title: its title, which may be empty.
        text: its whole text.
        score: higher is better; scores of different modes cannot be compared.
        row: row of the document in the store.
    """

    id: str
    title: str
    text: str
    score: float
    row: int


class Searcher:
    """A trained run, opened once for any number of queries. Get one with `dream.load`.

    Arguments and errors are those of `dream.load`.

    Example:
        >>> retriever = dream.load("logs/latest")
        >>> [hit.id for hit in retriever.search("read a file line by line", k=3)]
        >>> retriever.encode_queries(["read a file"]) @ retriever.encode_documents(["Open a file."]).T  # cosines
    """

    def __init__(
        self,
        run: str | Path,
        device: str | torch.device = "cpu",
        trust: Sequence[str] = (),
        data: str | Path | None = None,
    ) -> None:
        self.run = open_run(run, device, trust, data)
        self.store, self.encoder = self.run.store, self.run.encoder
        self._bm25: BM25Index | None = None

    @property
    def corpus_name(self) -> str:
        """Name of the searched corpus: the first part of its store's name."""
        return self.store.path.name.removesuffix(f"-{self.store.hash}")

    @property
    def bm25(self) -> "BM25Index":
        """The BM25 index of the documents. It is opened or built on first use."""
        if self._bm25 is None:
            from dream.indexes.bm25 import BM25Index  # takes as long to import as a search

            self._bm25 = BM25Index.open_or_build(self.store, "document")
        return self._bm25

    def search(self, query: str, k: int = 10, mode: str = "dense") -> list[Hit]:
        """The `k` best documents, best first. The list is shorter if fewer documents are found.

        Args:
            query: text of the query.
            k: number of documents to return.
            mode: `dense` (the trained encoder), `bm25`, or `hybrid` (both: see `fusion.hybrid`).

        Raises:
            ConfigError: there is no such mode, or k is below 1.
        """
        require(mode in MODES, "mode", mode, f"choose {', '.join(MODES)}")
        require(k > 0, "k", k, "at least 1 result")
        ranking = self._rank(query, k, mode)
        rows = zip(ranking.rows_QR[0, :k], ranking.score_QR[0, :k], strict=True)
        return [self._hit(int(row), float(score)) for row, score in rows if row >= 0]

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), D) float32 unit vectors of queries."""
        return self._encode(texts, "query")

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), D) float32 unit vectors of passages. Texts longer than `encoder.max_tokens` are cut."""
        return self._encode(texts, "passage")

    def _encode(self, texts: Sequence[str], side: Side) -> np.ndarray:
        return self.encoder.embed_texts(list(texts), side).float().cpu().numpy()

    def _rank(self, query: str, k: int, mode: str) -> Ranking:
        depth = max(k, DEPTH)  # fusion needs more documents than are returned
        rankings = []
        if mode != "dense":
            rankings.append(rank_bm25(self.bm25, [query], np.arange(len(self.store.texts)), depth))
        if mode != "bm25":
            query_QD = self.encoder.embed_queries([query])
            rankings.append(rank_dense(self.run.index.search, query_QD, self.store.passage_documents, depth))
        if mode != "hybrid":
            return rankings[0]
        lexical, dense = rankings
        return hybrid(lexical, dense, self.run.hybrid_weight, depth)

    def _hit(self, row: int, score: float) -> Hit:
        return Hit(self.store.document_names[row], self.store.titles[row], self.store.texts[row], score, row)
