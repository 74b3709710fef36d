"""What refreshes cost during training: none, in another process (`mode=background`), and `blocking`.

    python benchmarks/background.py --model MINILM --corpus my.jsonl [--rounds 3] [overrides of dream-train]

Needs two free cores: training and the process that embeds the corpus have one thread each. Each round trains the same
steps three times, in turn, and takes the time from the first to the last step. The corpus should be so small that a
core embeds it within an interval of `EVERY` steps, with the start of the process; otherwise training waits for it.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import lightning as L

from side_by_side import Row, record, train_in_turn

STEPS, EVERY, WINDOWS = 42, 20, 32
RUN = ["experiment=adapt", "trainer.precision=32-true", f"data.batch_size={WINDOWS}", f"trainer.max_steps={STEPS}",
       "data.passage_tokens=64", "logger=null", "callbacks.evaluation=null", "callbacks.last_checkpoint=null",
       "callbacks.best_checkpoint=null", "callbacks.candidate_panels=null", "evaluation.report_split=none",
       "+callbacks.clock={_target_: background.Clock}"]  # fmt: skip
SIDES = {"none": ["callbacks.index_refresh.every_n_steps=0"],
         "background": [f"callbacks.index_refresh.every_n_steps={EVERY}", "callbacks.index_refresh.mode=background"],
         "blocking": [f"callbacks.index_refresh.every_n_steps={EVERY}"]}  # fmt: skip


class Clock(L.Callback):
    """Writes the seconds from the end of the first step to that of the last one, with all refreshes in between."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 1:
            self.start = time.perf_counter()
        elif trainer.global_step == STEPS - 1:  # the refresh of the last step is always blocking
            Path(trainer.default_root_dir, "seconds").write_text(str(time.perf_counter() - self.start))


def measure(run: Path) -> float:
    return float((run / "seconds").read_text())


def main() -> None:
    options, found = train_in_turn(__doc__, "some dozens of documents, .jsonl", SIDES, measure, RUN)
    seconds = {side: statistics.median(times) for side, times in found.items()}
    what = f"{STEPS - 2} steps of {Path(options.model).name} with {(STEPS - 2) // EVERY} refreshes"
    record("background", [
        Row(f"{what}, {side}", f"{seconds[side]:.1f} s", f"without refreshes: {seconds['none']:.1f} s",
            seconds[side] / seconds["none"], 1.03 if side == "background" else None, at_most=True)
        for side in ("background", "blocking")
    ])  # fmt: skip


if __name__ == "__main__":
    main()
