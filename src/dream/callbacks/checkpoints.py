"""The two checkpoints of a run, in the run's folder: the newest, and the best on the dev queries."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from dream.runs.layout import CHECKPOINTS


class _RunCheckpoint(ModelCheckpoint):
    """One file, replaced each time."""

    def __init__(self, filename: str, every_n_train_steps: int, **options: Any) -> None:
        options |= {"filename": filename, "every_n_train_steps": every_n_train_steps, "enable_version_counter": False}
        super().__init__(**options)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.dirpath = f"{trainer.default_root_dir}/{CHECKPOINTS}"
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(_RunCheckpoint):
    """checkpoints/last.ckpt, every `every_n_train_steps` steps: that many steps of work a crash can cost."""

    def __init__(self, every_n_train_steps: int) -> None:
        super().__init__("last", every_n_train_steps)


class BestCheckpoint(_RunCheckpoint):
    """checkpoints/best.ckpt, where `monitor` was highest."""

    def __init__(self, monitor: str, every_n_train_steps: int) -> None:
        super().__init__("best", every_n_train_steps, monitor=monitor, mode="max", save_top_k=1)
