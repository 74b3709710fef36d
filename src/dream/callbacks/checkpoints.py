"""The two checkpoints in a run's folder: the newest one, and the best one on the dev queries."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from dream.runs.layout import CHECKPOINTS


class _RunCheckpoint(ModelCheckpoint):
    """One file in the run's folder `checkpoints`, replaced each time.

    Order: Lightning calls checkpoints after all other callbacks, wherever they are in the list, so they contain the
    state of a complete step.
    """

    def __init__(self, filename: str, every_n_train_steps: int, **options: Any) -> None:
        options |= {"filename": filename, "every_n_train_steps": every_n_train_steps, "enable_version_counter": False}
        super().__init__(**options)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.dirpath = f"{trainer.default_root_dir}/{CHECKPOINTS}"
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run has saved this step. Otherwise the first batch of an accumulated step would save it again."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *batch: Any) -> None:
        with pl_module.timer("checkpoint"):
            super().on_train_batch_end(trainer, pl_module, *batch)


class LastCheckpoint(_RunCheckpoint):
    """Saves checkpoints/last.ckpt at regular steps and at the last one, to resume from, or to train further.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints; a crash loses at most the work of these steps.
    """

    def __init__(self, every_n_train_steps: int) -> None:
        super().__init__("last", every_n_train_steps)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *batch: Any) -> None:
        regular = self._every_n_train_steps
        if trainer.global_step == trainer.max_steps:
            self._every_n_train_steps = trainer.global_step  # so that this step is saved
        super().on_train_batch_end(trainer, pl_module, *batch)
        self._every_n_train_steps = regular


class BestCheckpoint(_RunCheckpoint):
    """Saves checkpoints/best.ckpt when a metric is higher than at all earlier steps of the run.

    Args:
        monitor: name of the metric, e.g. val/ndcg_at_10.
        every_n_train_steps: optimizer steps between two comparisons; use the interval of the evaluation.
    """

    def __init__(self, monitor: str, every_n_train_steps: int) -> None:
        super().__init__("best", every_n_train_steps, monitor=monitor, mode="max", save_top_k=1)
