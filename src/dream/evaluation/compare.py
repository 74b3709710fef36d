"""What a run learnt: BM25, the untrained encoder, the trained one, and the hybrid, on the same labelled queries."""

from pathlib import Path

from rich.console import Console

from dream.candidates.bm25 import BM25Index
from dream.encoders.base import Encoder
from dream.evaluation.metrics import Ranking, reciprocal_rank_fusion
from dream.evaluation.report import flat_summary, table
from dream.evaluation.split import LabelledSplit
from dream.indexes.generation import IndexHandle
from dream.runtime import say


class Comparison:
    """Collects one row of the table after another. Both sides of training rank through the same index."""

    def __init__(self, split: LabelledSplit, encoder: Encoder, index: IndexHandle, bm25_folder: Path) -> None:
        self.split, self.encoder, self.index, self.bm25_folder = split, encoder, index, bm25_folder
        self.results: dict[str, dict[str, float]] = {}

    def before_training(self, untrained: dict[str, float] | None = None) -> None:
        """Rank by BM25 and by the untrained encoder, whose generation must be the current one; or take its scores."""
        say(f"Ranking the {len(self.split):,} queries of split {self.split.name} by BM25 and the untrained encoder")
        bm25 = BM25Index.open_or_build(self.split.store, self.bm25_folder)
        self.bm25_ranking = self._add("bm25", self.split.by_bm25(bm25))
        if untrained is None:
            self._add("untrained", self.split.by_encoder(self.encoder, self.index))
        else:
            self.results["untrained"] = dict(untrained)

    def after_training(self) -> None:
        """Rank by the trained encoder and by both together, then show the table."""
        trained = self._add("trained", self.split.by_encoder(self.encoder, self.index))
        self._add("hybrid", reciprocal_rank_fusion([self.bm25_ranking, trained]))
        documents = self.split.store.manifest["counts"]["documents"]
        title = f"{len(self.split):,} held-out queries of split {self.split.name}, all {documents:,} documents"
        Console(width=max(Console().width, len(title) + 2)).print(table(self.results, title))

    def _add(self, system: str, ranking: Ranking) -> Ranking:
        self.results[system] = self.split.score(ranking)
        return ranking

    def flat(self) -> dict[str, float]:
        """`bm25/ndcg_at_10` and so on."""
        return flat_summary(self.results)
