"""Compares BM25, the untrained encoder, the trained encoder and their hybrid on the same labelled queries."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from dream.callbacks.index_refresh import IndexRefresh
from dream.encoders.sharded import whole_encoder
from dream.evaluation.fusion import choose_weight, hybrid
from dream.evaluation.labelled_queries import HeldOutQuestions, LabelledQueries
from dream.evaluation.metrics import Ranking
from dream.evaluation.results import flat_summary, summary_table
from dream.indexes.bm25 import BM25Index
from dream.runs.layout import CHECKPOINT_PATTERNS, UNTRAINED_ENCODER, UNTRAINED_SCORES
from dream.utils import ranks
from dream.utils.atomic_io import read_checked_json, write_checked_json
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import DamageError
from dream.utils.logging import get_logger, log_table

log = get_logger(__name__)

LEAST_QUESTIONS = 100  # fewer held-out questions choose no weight; about 300 chose weights that lost at most .008


class FinalReport(L.Callback):
    """Ranks the queries of `split` before and after training, and prints a table of their metrics.

    Before training, it ranks by BM25 over whole documents, and by the untrained encoder. A resumed run reads the
    untrained encoder's scores from the run's folder instead. After training, it ranks by the trained encoder and by the
    hybrid of BM25 and the trained encoder. All metrics are in the run's summary, e.g. `bm25/ndcg_at_10`, and in the
    loggers, e.g. `report/bm25/ndcg_at_10`.

    If the language model has written questions, those that were not trained on choose the weight of the dense scores in
    the hybrid (`hybrid/weight`). Without labels, the table is about these questions. With neither, or without
    `IndexRefresh`, there is no table.

    Order: after `IndexRefresh`, so that the last snapshot belongs to the trained encoder.

    Args:
        split: name of the split of labelled queries.
        keep_untrained: save the untrained encoder in the run's folder. dream-evaluate can then rank by it, too.
    """

    def __init__(self, split: str, keep_untrained: bool) -> None:
        self.split, self.keep_untrained = split, keep_untrained
        self.scores: dict[str, dict[str, float]] = {}
        self.queries: LabelledQueries | None = None
        self.questions: LabelledQueries | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Rank before training: Lightning restores a checkpoint after this hook, so the weights are untrained."""
        run = Path(trainer.default_root_dir)
        if self.keep_untrained:
            ranks.on_rank_zero(lambda: _keep(pl_module.encoder, run / UNTRAINED_ENCODER))
        corpus = trainer.datamodule.corpus  # type: ignore[attr-defined]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        refresh = next((callback for callback in callbacks if isinstance(callback, IndexRefresh)), None)
        held_out = HeldOutQuestions(pl_module.store)
        if refresh is None or not (self.split in corpus.splits() or held_out.questions):
            return
        self.questions = LabelledQueries(held_out, pl_module.store, held_out.name) if held_out.questions else None
        self.queries = self.questions
        if self.split in corpus.splits():
            self.queries = LabelledQueries(corpus, pl_module.store, self.split)
        assert self.queries is not None
        belongs_to = {"store": pl_module.store.hash, "split": self.queries.name, "queries": len(self.queries),
                      "encoder_fingerprint": pl_module.encoder.fingerprint()}  # fmt: skip
        stored = ranks.on_rank_zero(lambda: _stored_scores(run / UNTRAINED_SCORES, belongs_to))
        if stored is None:
            pl_module.encoder.to(trainer.strategy.root_device)
            refresh.refresh(trainer, pl_module, prune=False)
        systems = "BM25" if stored else "BM25 and the untrained encoder"
        log.info(f"Ranking the {len(self.queries):,} {self._kind} by {systems}")
        with pl_module.timer("evaluate"):
            self.scores = ranks.on_rank_zero(lambda: self._rank_before(pl_module, stored))
        if stored is None:
            content = belongs_to | {"scores": self.scores["untrained"]}
            ranks.on_rank_zero(lambda: write_checked_json(run / UNTRAINED_SCORES, content))

    def _rank_before(self, pl_module: Any, stored: dict[str, float] | None) -> dict[str, dict[str, float]]:
        """Scores of BM25 and of the untrained encoder. Runs on rank 0."""
        assert self.queries is not None
        self.index = BM25Index.open_or_build(pl_module.store, "document")
        self.bm25 = self._add("bm25", self.queries.by_bm25(self.index))
        if stored is None:
            self._add("untrained", self.queries.by_encoder(pl_module.encoder, pl_module.index))
        else:
            self.scores["untrained"] = stored
        return self.scores

    def _rank_after(self, encoder: Any, index: Any) -> tuple[dict[str, dict[str, float]], float | None]:
        """(scores of all systems, weight of the hybrid if it was chosen). Runs on rank 0."""
        assert self.queries is not None
        trained = self._add("trained", self.queries.by_encoder(encoder, index))
        weight = self._weight(encoder, index)
        self._add("hybrid", hybrid(self.bm25, trained, weight))
        return self.scores, weight

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.queries is None:
            return
        pl_module.encoder.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        with pl_module.timer("evaluate"), whole_encoder(pl_module) as encoder:
            self.scores, weight = ranks.on_rank_zero(lambda: self._rank_after(encoder, pl_module.index))
        documents = pl_module.store.manifest["counts"]["documents"]
        title = f"{len(self.queries):,} held-out {self._kind}, all {documents:,} documents"
        if trainer.is_global_zero:
            log_table(summary_table(self.scores, title))
        flat = flat_summary(self.scores) | ({} if weight is None else {"hybrid/weight": weight})
        trainer.callback_metrics.update({name: torch.tensor(v, dtype=torch.float64) for name, v in flat.items()})
        for logger in trainer.loggers:
            logger.log_metrics({f"report/{name}": value for name, value in flat.items()}, step=trainer.global_step)

    @property
    def _kind(self) -> str:
        assert self.queries is not None
        return self.queries.name if self.queries is self.questions else f"queries of split {self.split}"

    def _weight(self, encoder: Any, index: Any) -> float | None:
        """The weight of the dense scores that is best for the held-out questions. None with few questions."""
        if self.questions is None or len(self.questions) < LEAST_QUESTIONS:
            return None
        dense = self.questions.by_encoder(encoder, index)
        weight = choose_weight(self.questions.by_bm25(self.index), dense, self.questions.judgements)
        log.info(f"Hybrid: {weight:.2f} · trained encoder + {1 - weight:.2f} · BM25 is best for the "
                 f"{len(self.questions):,} held-out questions")  # fmt: skip
        return weight

    def _add(self, system: str, ranking: Ranking) -> Ranking:
        assert self.queries is not None
        self.scores[system] = self.queries.score(ranking)
        return ranking


def _keep(encoder: Any, folder: Path) -> None:
    """Save the encoder, unless an undamaged copy is there."""
    if not verify_or_discard(folder):
        with new_directory(folder) as unfinished:
            encoder.save(unfinished)


def _stored_scores(file: Path, belongs_to: dict[str, Any]) -> dict[str, float] | None:
    """The scores that the run stored at its start. None for a new run, or if the file is damaged or does not match.

    `trainer.ckpt_path` is not set yet in `setup`, so the folder shows whether the run is resumed.
    """
    resumed = any(path for pattern in CHECKPOINT_PATTERNS for path in file.parent.glob(pattern))
    if not file.exists() and not resumed:
        return None
    try:
        content = read_checked_json(file)
    except DamageError as damage:
        log.warning(f"{damage}; ranking by the untrained encoder again")
        return None
    scores = content.pop("scores", None)
    return scores if content == belongs_to else None
