"""Ranks labelled queries against the whole corpus during training."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from dream.callbacks.index_refresh import IndexRefresh
from dream.encoders.sharded import whole_encoder
from dream.evaluation.labelled_queries import LabelledQueries
from dream.utils import ranks
from dream.utils.errors import require


class RetrievalEvaluation(L.Callback):
    """Searches the labelled queries of `split` in the index, and logs their metrics as `val/*`.

    Order: after `IndexRefresh`, and at a multiple of its interval, so that the same weights embed queries and passages.

    Args:
        split: name of the split of labelled queries.
        every_n_steps: optimizer steps between two evaluations; 0: only at the end.

    Raises:
        ConfigError: `every_n_steps` is negative, or not a multiple of the refresh interval.
    """

    def __init__(self, split: str, every_n_steps: int) -> None:
        remedy = "at least 1, or 0 for only at the end"
        require(every_n_steps >= 0, "callbacks.evaluation.every_n_steps", every_n_steps, remedy)
        self.split_name, self.every_n_steps = split, every_n_steps
        self.evaluated_step = 0

    def check_interval(self, callbacks: Sequence[L.Callback]) -> None:
        """Raise ConfigError if the index could be missing, or older than the encoder, when queries are ranked."""
        refreshes = [callback for callback in callbacks if isinstance(callback, IndexRefresh)]
        require(bool(refreshes), "callbacks.index_refresh", "null", "callbacks.evaluation ranks queries by the index "
                "that it builds; keep it, or also set callbacks.evaluation=null")  # fmt: skip
        for callback in refreshes:
            if self.every_n_steps:
                require(callback.mode == "blocking", "callbacks.evaluation.every_n_steps", self.every_n_steps, "with "
                        "callbacks.index_refresh.mode=background the index is older than the encoder; set it to 0, and "
                        "queries are ranked at the end")  # fmt: skip
                interval = callback.every_n_steps
                remedy = f"must be a multiple of callbacks.index_refresh.every_n_steps={interval}"
                fits = interval > 0 and self.every_n_steps % interval == 0
                require(fits, "callbacks.evaluation.every_n_steps", self.every_n_steps, remedy)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        corpus = trainer.datamodule.corpus  # type: ignore[attr-defined]
        self.split = LabelledQueries(corpus, pl_module.store, self.split_name)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self.evaluated_step:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step != self.evaluated_step:
            self._evaluate(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.encoder.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        self.on_train_end(trainer, pl_module)  # Lightning skips that hook if a run is resumed after its last step

    def _evaluate(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Rank, and log the scores of this step only: `pl_module.log` would log them again at every later step."""
        self.evaluated_step = trainer.global_step
        with pl_module.timer("evaluate"), whole_encoder(pl_module) as encoder:
            scores = ranks.on_rank_zero(lambda: self.split.score(self.split.by_encoder(encoder, pl_module.index)))
        metrics = {f"val/{name}": value for name, value in scores.items()}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        trainer.progress_bar_metrics["val/ndcg_at_10"] = metrics["val/ndcg_at_10"]
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
