"""Two processes, each on a core of its own, against one process on one core: training steps and refreshes.

    python benchmarks/scaling.py --model MINILM --corpus my.jsonl [--rounds 5] [overrides of dream-train]

Each round trains a transformer for `STEPS` steps with one process and with two (`trainer=ddp`), in turn, with small and
with large steps: the same windows, the same global batch, one thread each. A step's time comes from the median of the
logged speeds; a refresh embeds the whole corpus, at the end of the run. Preparing a store is measured by preparing.py.
"""

import csv
import os
import statistics
from pathlib import Path
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import lightning as L

from dream.utils import ranks
from side_by_side import Row, record, train_in_turn

STEPS, WINDOWS = 6, (32, 128)
RUN = ["experiment=adapt", "trainer.precision=32-true", f"trainer.max_steps={STEPS}",
       "trainer.log_every_n_steps=1", "data.passage_tokens=64", "logger=csv", "callbacks.evaluation=null",
       "callbacks.best_checkpoint=null", "callbacks.candidate_panels=null", "evaluation.report_split=none",
       "+callbacks.one_core={_target_: scaling.OneCore}"]  # fmt: skip
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
SIDES = {f"{count}, {windows}": [*(TWO if count == "two" else []), f"data.batch_size={windows}"]
         for windows in WINDOWS for count in ("one", "two")}  # fmt: skip


class OneCore(L.Callback):
    """Binds each rank to a core of its own."""

    def setup(self, *_: Any, **__: Any) -> None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[ranks.rank() % len(cores)]})


def measure(run: Path) -> dict[str, float]:
    """Windows a second, and seconds of the last refresh."""
    rows = list(csv.DictReader((run / "csv" / "metrics.csv").open()))
    speeds = [float(row["perf/windows_per_second"]) for row in rows if row.get("perf/windows_per_second")]
    refreshes = [float(row["index/seconds"]) for row in rows if row.get("index/seconds")]
    return {"speed": statistics.median(speeds[1:]), "refresh": refreshes[-1]}


def main() -> None:
    options, found = train_in_turn(__doc__, "some thousand short documents, .jsonl", SIDES, measure, RUN)
    median = lambda side, part: statistics.median(row[part] for row in found[side])  # noqa: E731
    rows = []
    for windows in WINDOWS:
        one, two = (windows / median(f"{count}, {windows}", "speed") for count in ("one", "two"))
        rows.append((f"training step, {Path(options.model).name}, {windows} windows", one, two, 1.8))
    one, two = (median(f"{count}, {WINDOWS[0]}", "refresh") for count in ("one", "two"))
    rows.append(("refresh, the same encoder", one, two, 1.85))
    record("scaling", [
        Row(f"{name}, two processes on a core each", f"{two:.2f} s", f"one process on one core: {one:.2f} s", one / two,
            bar) for name, one, two, bar in rows
    ])  # fmt: skip


if __name__ == "__main__":
    main()
