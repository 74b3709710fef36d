"""Speed of the training, and where the time of a step goes."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from dream.batch import WindowBatch

PARTS = ("data", "encode", "propose", "score", "step", "refresh")


class Throughput(Checkpoint):
    """Logs perf/windows_per_second and perf/fraction_*, the share of wall time of each part since the last log.

    `encode`, `propose` and `score` are measured by the module, `refresh` by the index refresh, with the module's timer.
    `step` is the rest of a step: backward, optimizer, and the loss. `data` is the wait for the next batch.

    A Checkpoint, because Lightning calls those after all other callbacks: only then does the wait for data begin.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._on_stepped)
        self._seconds = pl_module.timer.seconds
        self._asked, self._scored = pl_module.scorer.pairs_asked, pl_module.scorer.pairs_scored
        self._restart()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: WindowBatch, batch_idx: int) -> None:
        self._started = time.perf_counter()
        self._timed_before = sum(self._seconds.values())
        self._seconds["data"] += self._started - self._ended

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._on_stepped()  # if gradients are accumulated, no optimizer follows

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: WindowBatch, batch_idx: int
    ) -> None:
        self._windows += len(batch) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(pl_module)
        self._ended = time.perf_counter()

    def _on_stepped(self, *_: Any) -> None:
        """Charge everything since the last call, or the start of the batch, that no other part was charged with."""
        now, timed = time.perf_counter(), sum(self._seconds.values())
        self._seconds["step"] += now - self._started - (timed - self._timed_before)
        self._started, self._timed_before = now, sum(self._seconds.values())

    def _log(self, pl_module: Any) -> None:
        wall = time.perf_counter() - self._clock
        pl_module.log("perf/windows_per_second", self._windows / wall, prog_bar=True)
        pl_module.log_dict({f"perf/fraction_{part}": self._seconds[part] / wall for part in PARTS})
        asked, scored = pl_module.scorer.pairs_asked - self._asked, pl_module.scorer.pairs_scored - self._scored
        if asked:
            pl_module.log("perf/cache_hit_rate", 1 - scored / asked)
        self._asked, self._scored = pl_module.scorer.pairs_asked, pl_module.scorer.pairs_scored
        self._restart()

    def _restart(self) -> None:
        self._seconds.clear()
        self._windows, self._timed_before = 0, 0.0
        self._clock = self._started = self._ended = time.perf_counter()
