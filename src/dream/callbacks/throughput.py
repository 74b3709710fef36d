"""Measures the speed of training, and how the time of a run is spent."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.table import Table

from dream.batch import WindowBatch
from dream.utils.logging import get_logger, log_table
from dream.utils.timing import PARTS, fractions

log = get_logger(__name__)

SHOWN = 0.005  # the table leaves out parts with a smaller share
LARGE = 0.15  # there is a hint about parts with a larger share


class Throughput(Checkpoint):
    """Logs `perf/windows_per_second` and `perf/fraction_*`, each part's share of the wall time since the last log.

    The parts are `dream.utils.timing.PARTS`; their shares sum to 1. After training, a table shows the shares of the
    whole run, from its start, and the run's summary contains them.

    `perf/cache_hit_rate` is the share of (window, candidate) pairs whose log-likelihood was already known.

    Order: after all other callbacks, because their time must not count as waiting for data. Lightning calls checkpoints
    last. For this reason this class is a Checkpoint, although it saves nothing, and comes last in the list.
    """

    def __init__(self) -> None:
        self._logged_at = 0  # step
        self._counted_at = self._timed = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._count("optimizer"))
        self._timer, self._seconds = pl_module.timer, pl_module.timer.seconds
        self._seconds["prepare"] += self._timer.wall - sum(self._seconds.values())
        self._asked, self._scored = pl_module.scorer.pairs_asked, pl_module.scorer.pairs_scored
        self._restart()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: WindowBatch, batch_idx: int) -> None:
        self._count("data")

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._count("backward")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self._count("other")  # the other callbacks of this hook

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: WindowBatch, batch_idx: int
    ) -> None:
        self._windows += len(batch) * trainer.world_size
        step = trainer.global_step
        self._count("other")
        # With gradient accumulation, several batches have the same step. Only the first of them is logged.
        if step % trainer.log_every_n_steps == 0 and step != self._logged_at:  # type: ignore[attr-defined]
            self._logged_at = step
            self._log(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        timer = pl_module.timer
        shares = fractions(timer.seconds, timer.wall)
        whole = {f"perf/fraction_{part}": torch.tensor(share, dtype=torch.float64) for part, share in shares.items()}
        trainer.callback_metrics.update(whole)
        if trainer.is_global_zero:
            log_table(_table(shares, timer.wall))
            log.info(_advice(shares))

    def _count(self, part: str) -> None:
        """Add to `part` the time since the last call, without the time that the timer has measured since then."""
        now, timed = time.perf_counter(), sum(self._seconds.values())
        self._seconds[part] += now - self._counted_at - (timed - self._timed)
        self._counted_at, self._timed = now, sum(self._seconds.values())

    def _log(self, pl_module: Any) -> None:
        wall = time.perf_counter() - self._clock
        pl_module.log("perf/windows_per_second", self._windows / wall, prog_bar=True)
        since = {part: seconds - self._before.get(part, 0.0) for part, seconds in self._seconds.items()}
        shares = fractions(since, wall)
        del shares["prepare"]  # no step prepares
        pl_module.log_dict({f"perf/fraction_{part}": share for part, share in shares.items()})
        asked, scored = pl_module.scorer.pairs_asked - self._asked, pl_module.scorer.pairs_scored - self._scored
        if asked:
            pl_module.log("perf/cache_hit_rate", 1 - scored / asked)
        self._asked, self._scored = pl_module.scorer.pairs_asked, pl_module.scorer.pairs_scored
        self._restart()

    def _restart(self) -> None:
        self._before, self._timed, self._windows = dict(self._seconds), sum(self._seconds.values()), 0
        self._clock = self._counted_at = time.perf_counter()


def _table(shares: dict[str, float], wall: float) -> Table:
    """Where the time went: the largest share comes first."""
    table = Table(title=f"Where the {wall:,.0f} s went", title_justify="left")
    for title in ("part", "s", "share", "what it is"):
        table.add_column(title, justify="right" if title in ("s", "share") else "left")
    for part, share in sorted(shares.items(), key=lambda item: -item[1]):
        if share >= SHOWN:
            table.add_row(part, f"{share * wall:,.1f}", f"{share:.0%}", PARTS[part][0])
    return table


def _advice(shares: dict[str, float]) -> str:
    """What makes the largest parts shorter, one line each."""
    large = sorted((part for part in shares if shares[part] >= LARGE), key=lambda part: -shares[part])
    return "\n".join(f"  {shares[part]:.0%} {part}: {PARTS[part][1]}" for part in large)
