"""Measures time and memory of a training step with each objective, for the same windows and candidates.

    python benchmarks/objectives.py [corpus=… scorer=… objective.count=…]

Each objective runs in its own process, without a cache of log-likelihoods. The first step compiles and is not counted.
Memory is the peak of the process minus its memory before the first step. Overrides are those of dream-train.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dream.commands.app import command
from dream.utils.logging import get_logger

log = get_logger(__name__)

OBJECTIVES = ("kl_posterior", "marginal", "leave_one_out", "attention", "in_batch_attention")
WINDOWS, STEPS = 16, 5
KEYS = ("candidates.k", "objective.temperature", "scorer.scoring.dtype", "scorer.scoring.compile")
RESULT = "DREAM_BENCHMARK_RESULT"  # environment variable: file for the result of one objective


def measure(cfg: DictConfig) -> None:
    """Measure one objective in this process, and write the result as JSON."""
    from dream.batch import WindowBatch
    from dream.build import build_module, build_text

    OmegaConf.update(cfg, "scorer.cache_megabytes", 0)
    OmegaConf.update(cfg, "candidates.scored_windows", WINDOWS)
    OmegaConf.update(cfg, "candidates.hard_negatives", False)
    OmegaConf.update(cfg, "data.batch_size", WINDOWS)
    text = build_text(cfg)
    module = build_module(cfg, text)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batches = iter(text.data.train_dataloader())
    seconds, before = [], 0
    for step in range(STEPS + 1):
        windows: WindowBatch = next(batches)
        module.zero_grad()
        before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        module.timer.seconds.clear()
        began = time.perf_counter()
        module.training_step(windows, step)["loss"].backward()
        if step:
            seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"seconds": statistics.median(seconds), "before_mb": before / 1024, "peak_mb": peak / 1024}
    Path(os.environ[RESULT]).write_text(json.dumps(found))


def run(name: str, words: list[str], folder: Path) -> dict[str, float]:
    """Measure one objective in a new process."""
    overrides = [word for word in words if not word.startswith("objective.") or name == "attention"]
    result = folder / f"{name}.json"
    ran = subprocess.run([sys.executable, __file__, f"objective={name}", "candidates=bm25",
                          f"hydra.run.dir={folder / name}", *overrides], env=os.environ | {RESULT: str(result)},
                         capture_output=True, text=True)  # fmt: skip
    if ran.returncode:
        sys.exit(ran.stderr)
    return json.loads(result.read_text())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: run(name, sys.argv[1:], Path(folder)) for name in OBJECTIVES}
    first = rows[OBJECTIVES[0]]
    log.info(f"{WINDOWS} windows, 8 BM25 candidates each, forward and backward; median of {STEPS} steps")
    for name, row in rows.items():
        above = [one["peak_mb"] - one["before_mb"] for one in (row, first)]
        log.info(f"  {name:20} {row['seconds']:6.2f} s  {row['seconds'] / first['seconds']:5.2f} x   peak "
              f"{row['peak_mb']:5.0f} MB, {row['peak_mb'] / first['peak_mb']:4.2f} x; {above[0]:+5.0f} MB in training, "
              f"{above[0] / max(above[1], 1):4.2f} x")  # fmt: skip


if __name__ == "__main__":
    if os.environ.get(RESULT) or {"-h", "--help"} & set(sys.argv[1:]):
        command("train", __doc__, KEYS)(measure)()
    else:
        main()
