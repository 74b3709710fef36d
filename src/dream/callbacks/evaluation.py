"""Ranks labelled queries against the whole corpus while training goes on."""

from typing import Any

import lightning as L

from dream.errors import ConfigError, require
from dream.evaluation.split import LabelledSplit


class RetrievalEvaluation(L.Callback):
    """Logs `val/*` every n steps, through the index. n must be a multiple of the refresh interval: an old index
    would be searched with a newer encoder's queries, and the figure would belong to neither."""

    def __init__(self, split: str, every_n_steps: int) -> None:
        require(every_n_steps > 0, "callbacks.evaluation.every_n_steps", every_n_steps, "at least 1 step")
        self.split_name, self.every_n_steps = split, every_n_steps

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        from dream.callbacks.refresh import IndexRefresh

        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, IndexRefresh) and self.every_n_steps % callback.every_n_steps:
                raise ConfigError("callbacks.evaluation.every_n_steps", self.every_n_steps,
                                  f"must be a multiple of callbacks.refresh.every_n_steps={callback.every_n_steps}")  # fmt: skip
        self.split = LabelledSplit(trainer.datamodule.corpus, pl_module.store, self.split_name)  # type: ignore[attr-defined]
        self.evaluated_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self.evaluated_step:
            return
        self.evaluated_step = step
        scores = self.split.score(self.split.by_encoder(pl_module.encoder, pl_module.index))
        for name, value in scores.items():
            pl_module.log(f"val/{name}", value, prog_bar=name == "ndcg_at_10", batch_size=1)
