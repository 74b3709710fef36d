"""Measures the speed of training, and how the time of a step is spent."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from dream.batch import WindowBatch

PARTS = ("data", "encode", "propose", "score", "step", "refresh")


class Throughput(Checkpoint):
    """Logs `perf/windows_per_second` and `perf/fraction_*`, each part's share of the wall time since the last log.

    The module's timer measures `encode`, `propose`, `score` and `refresh`. `step` is the rest of a step: loss, backward
    and optimizer. `data` is the time spent waiting for the next batch. Evaluation, checkpoints and logging belong to no
    part, so the shares can sum to less than 1.

    `perf/cache_hit_rate` is the share of (window, candidate) pairs whose log-likelihood was already known.

    Order: after all other callbacks, because their time must not count as waiting for data. Lightning calls checkpoints
    last. For this reason this class is a Checkpoint, although it saves nothing, and comes last in the list.
    """

    def __init__(self) -> None:
        self._logged_at = 0  # step

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._on_stepped)
        self._seconds = pl_module.timer.seconds
        self._asked, self._scored = pl_module.scorer.pairs_asked, pl_module.scorer.pairs_scored
        self._restart()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: WindowBatch, batch_idx: int) -> None:
        self._started = time.perf_counter()
        self._seconds["data"] += self._started - self._ended
        self._timed_before = sum(self._seconds.values())

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._on_stepped()  # if gradients are accumulated, no optimizer step follows

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: WindowBatch, batch_idx: int
    ) -> None:
        self._windows += len(batch) * trainer.world_size
        step = trainer.global_step
        # With gradient accumulation, several batches have the same step. Only the first of them is logged.
        if step % trainer.log_every_n_steps == 0 and step != self._logged_at:  # type: ignore[attr-defined]
            self._logged_at = step
            self._log(pl_module)
        self._ended = time.perf_counter()

    def _on_stepped(self, *_: Any) -> None:
        """Add to `step` the time since the last call or the start of the batch, without the time of other parts."""
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
