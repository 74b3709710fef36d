"""What the log-likelihood cache saves, and that it changes nothing. Run: python benchmarks/loglik_cache.py [overrides]

1. A sweep over three values of objective.temperature with BM25 candidates on an empty cache; then its last point again,
   on an empty cache of its own. Prints the LM forwards of each run, and whether the loss curves are bitwise equal.
2. A sample of cached log-likelihoods against freshly computed ones, in several sizes of forward, in the scorer's own
   type and in float32: the largest difference, and whether the ranking of any window's candidates changes.

Takes every override of dream-train; the scorer is trained first where it is not cached.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from omegaconf import DictConfig

TEMPERATURES = (0.05, 0.1, 0.2)
STEPS = 40
WINDOWS, CANDIDATES = 64, 8
TOKENS_PER_FORWARD = (1, 512, 2048, 4096, 16384)


def run(folder: Path, temperature: float, cache: Path, overrides: list[str]) -> tuple[list[str], dict]:
    """(loss of each step as it is written, summary)"""
    command = [sys.executable, "-m", "dream.commands.train", "candidates=bm25", f"trainer.max_steps={STEPS}", "logger=csv",
               "trainer.log_every_n_steps=1", "evaluation.dev_split=none", "evaluation.report_split=none",
               "callbacks.candidate_panels=null", f"objective.temperature={temperature}", f"scorer.cache_dir={cache}",
               f"paths.logs={folder}", *overrides]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = folder / "latest"
    with (done / "csv" / "metrics.csv").open() as file:
        losses = [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]
    return losses, json.loads((done / "summary.json").read_text())


def compare_runs(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared, fresh = folder / "shared", folder / "fresh"
        print(f"{STEPS} steps   temperature   LM forwards   pairs scored of asked   seconds")
        for temperature in TEMPERATURES:
            warm, summary = run(folder / "logs", temperature, shared, overrides)
            _show("shared cache", temperature, summary)
        cold, summary = run(folder / "logs", TEMPERATURES[-1], fresh, overrides)
        _show("empty cache", TEMPERATURES[-1], summary)
        without, summary = run(folder / "logs", TEMPERATURES[-1], fresh, [*overrides, "scorer.cache=false"])
        _show("no cache", TEMPERATURES[-1], summary)
        print(f"loss curves bitwise equal: shared and empty cache {warm == cold}, shared and none {warm == without}")


def _show(name: str, temperature: float, summary: dict) -> None:
    asked, scored = summary["pairs_asked"], summary["pairs_scored"]
    print(f"{name:12} {temperature:10} {summary['lm_forwards']:13,} {scored:15,} of {asked:,} "
          f"{summary['wall_seconds']:9.0f}", flush=True)  # fmt: skip


def compare_scores(cfg: DictConfig) -> None:
    """Differences between the cached log-likelihoods of one size of forward and fresh ones of other sizes."""
    from hydra.utils import instantiate

    from dream.build import assemble
    from dream.store.permutation import permute

    cfg.scorer.cache = False
    parts = assemble(cfg)
    store, scorer = parts.store, parts.scorer
    scorer.load(parts.store)
    draw = torch.Generator().manual_seed(0)
    windows_B = torch.from_numpy(permute(0, torch.arange(WINDOWS).numpy(), len(store.windows)))
    candidates_BK = torch.randint(len(store.passages), (WINDOWS, CANDIDATES), generator=draw)
    for dtype in dict.fromkeys((cfg.scorer.scoring.dtype, "float32")):
        scorer.scoring = instantiate({"_target_": "dream.scorers.base.Scoring", **cfg.scorer.scoring, "dtype": dtype})
        scorer.to(scorer.device)
        first = None
        for tokens in TOKENS_PER_FORWARD:
            scorer.scoring.tokens_per_forward = tokens
            loglik_BK = scorer.loglik(store, windows_B, candidates_BK)
            first = loglik_BK if first is None else first
            same = torch.equal(loglik_BK.argsort(dim=1, stable=True), first.argsort(dim=1, stable=True))
            print(f"{dtype:9} {tokens:6} tokens a forward: largest difference {(loglik_BK - first).abs().max():.2e} "
                  f"nats, rankings {'the same' if same else 'CHANGED'}", flush=True)  # fmt: skip


if __name__ == "__main__":
    import dream.utils.runtime  # noqa: F401  first, as in every entry point
    from dream.commands.app import command

    compare_runs([argument for argument in sys.argv[1:] if "=" in argument])
    command("train")(compare_scores)()
