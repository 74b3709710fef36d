"""One question against a trained run: dense, BM25, or both."""

from dataclasses import dataclass
from pathlib import Path

from dream.candidates.bm25 import BM25Index
from dream.errors import require
from dream.evaluation.baselines import rank_bm25, rank_dense
from dream.evaluation.metrics import DEPTH, Ranking, reciprocal_rank_fusion
from dream.runs import open_run

MODES = ("dense", "bm25", "hybrid")


@dataclass
class Hit:
    """A document and its score in the mode of the search."""

    name: str
    text: str
    score: float


class Searcher:
    """Opens a run once, then answers any number of questions."""

    def __init__(self, run: str, mode: str) -> None:
        require(mode in MODES, "mode", mode, f"choose {', '.join(MODES)}")
        self.mode, self.run = mode, open_run(run)
        self.store = self.run.store
        self.corpus_name, self.passages = self.run.cfg.corpus.name, len(self.store.passages)
        folder = Path(self.run.cfg.paths.data) / "bm25"
        self.bm25 = None if mode == "dense" else BM25Index.open_or_build(self.store, folder)

    def search(self, query: str, k: int) -> list[Hit]:
        """At most k documents, best first."""
        ranking = self._rank(query, k)
        rows = zip(ranking.rows_QR[0, :k], ranking.score_QR[0, :k], strict=True)
        return [self._hit(int(row), float(score)) for row, score in rows if row >= 0]

    def _rank(self, query: str, k: int) -> Ranking:
        documents, depth = self.store.passage_documents, max(k, DEPTH)  # fusion looks below the k that are shown
        rankings = []
        if self.bm25 is not None:
            rankings.append(rank_bm25(self.bm25, [query], documents, depth))
        if self.mode != "bm25":
            query_QD = self.run.encoder.embed_queries([query])
            rankings.append(rank_dense(self.run.index.search, query_QD, documents, depth))
        return rankings[0] if len(rankings) == 1 else reciprocal_rank_fusion(rankings, depth=depth)

    def _hit(self, row: int, score: float) -> Hit:
        name, title = self.store.document_names[row], self.store.titles[row]
        return Hit(f"{name}  {title}" if title else name, self.store.texts[row], score)
