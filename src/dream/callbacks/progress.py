"""Lightning's progress bar, with few updates if the output is not a terminal."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from dream.utils.runtime import SECONDS_BETWEEN_LINES


class TrainProgress(TQDMProgressBar):
    """Shows the step, the speed and a few metrics, without the version number of the logger.

    In a log file, each update is a line. So there it is updated at the first step, then every 15 s, and at the end.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self._next = 0.0  # when the next line is due

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, is_last = time.monotonic(), batch_idx + 1 == self.train_progress_bar.total
        if sys.stdout.isatty() or is_last or now >= self._next:
            self._next = now + SECONDS_BETWEEN_LINES
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer, pl_module):
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
