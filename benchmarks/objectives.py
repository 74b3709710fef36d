"""What each objective asks of the language model costs: time and memory for the same windows and candidates.

    python benchmarks/objectives.py [corpus=… scorer=… objective.count=…]

Every objective runs in a process of its own, after one step that compiles and warms up; none is cached. Memory is the
most that the process held above what it held before the first step. Takes the overrides of dream-train.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from omegaconf import DictConfig, OmegaConf

from dream.commands.app import command

OBJECTIVES = ("kl_posterior", "marginal", "leave_one_out", "attention", "in_batch_attention")
WINDOWS, STEPS = 16, 5


def measure(cfg: DictConfig) -> None:
    """One objective, in this process: prints a line of JSON."""
    import torch

    from dream.batch import WindowBatch
    from dream.build import assemble, retriever

    OmegaConf.update(cfg, "scorer.cache", False)
    OmegaConf.update(cfg, "candidates.scored_windows", WINDOWS)
    OmegaConf.update(cfg, "candidates.hard_negatives", False)
    OmegaConf.update(cfg, "data.batch_size", WINDOWS)
    parts = assemble(cfg)
    module = retriever(cfg, parts)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batches = iter(parts.data.train_dataloader())
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
    print(json.dumps({"seconds": statistics.median(seconds), "before_mb": before / 1024, "peak_mb": peak / 1024,
                      "threads": torch.get_num_threads()}))  # fmt: skip


def main() -> None:
    rows = {}
    for name in OBJECTIVES:
        overrides = [word for word in sys.argv[1:] if not word.startswith("objective.") or name == "attention"]
        folder = f"hydra.run.dir={tempfile.mkdtemp()}"
        ran = subprocess.run([sys.executable, __file__, f"objective={name}", "candidates=bm25", folder, *overrides],
                             env=os.environ | {"DREAM_MEASURE": "1"}, capture_output=True, text=True)  # fmt: skip
        if ran.returncode:
            sys.exit(ran.stderr)
        rows[name] = json.loads(ran.stdout.splitlines()[-1])
    first = rows[OBJECTIVES[0]]
    print(f"{WINDOWS} windows, 8 BM25 candidates each, forward and backward; median of {STEPS} steps")
    for name, row in rows.items():
        above = [one["peak_mb"] - one["before_mb"] for one in (row, first)]
        print(f"  {name:20} {row['seconds']:6.2f} s  {row['seconds'] / first['seconds']:5.2f} x   peak "
              f"{row['peak_mb']:5.0f} MB, {row['peak_mb'] / first['peak_mb']:4.2f} x; {above[0]:+5.0f} MB in training, "
              f"{above[0] / max(above[1], 1):4.2f} x")  # fmt: skip


if __name__ == "__main__":
    if os.environ.get("DREAM_MEASURE"):
        command("train")(measure)()
    else:
        main()
