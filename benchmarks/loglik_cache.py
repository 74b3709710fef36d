"""Measures how much time the cache of log-likelihoods saves, and whether it changes results.

    python benchmarks/loglik_cache.py [overrides of dream-train]

1. It computes the log-likelihoods of a sample of pairs with several values of tokens_per_forward, in the scorer's own
   type and in float32. It prints the largest difference, and whether the ranking of any window's candidates changes.
2. It runs a sweep over three values of objective.temperature with BM25 candidates and one cache, which is initially
   empty. The last run is repeated with an empty cache and without a cache. It prints the LM forwards of each run, and
   whether the loss curves are bitwise equal.

If the scorer is not cached, it is trained first.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import torch
from omegaconf import DictConfig, OmegaConf

from dream.commands.app import command
from dream.utils.logging import get_logger

log = get_logger(__name__)

TEMPERATURES = (0.05, 0.1, 0.2)
STEPS = 40
WINDOWS, CANDIDATES = 64, 8
TOKENS_PER_FORWARD = (1, 512, 2048, 4096, 16384)
KEYS = ("scorer.cache_megabytes", "scorer.scoring.tokens_per_forward", "scorer.scoring.dtype")


def run(folder: Path, temperature: float, data: Path, overrides: list[str]) -> tuple[list[str], dict]:
    """(loss of each step as text, summary)"""
    words = [sys.executable, "-m", "dream.commands.train", "candidates=bm25", f"trainer.max_steps={STEPS}",
             "logger=csv", "trainer.log_every_n_steps=1", "evaluation.dev_split=none", "evaluation.report_split=none",
             "callbacks.candidate_panels=null", f"objective.temperature={temperature}", *overrides,
             f"paths.data={data}", f"paths.logs={folder}"]  # fmt: skip
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)
    latest = folder / "latest"
    with (latest / "csv" / "metrics.csv").open() as file:
        losses = [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]
    return losses, json.loads((latest / "summary.json").read_text())


def data_with_empty_cache(data: Path, copy: Path) -> Path:
    """A folder with links to everything in `data` except the cached log-likelihoods."""
    copy.mkdir()
    for entry in data.resolve().iterdir():
        if entry.name != "loglik":
            (copy / entry.name).symlink_to(entry)
    return copy


def compare_runs(data: Path, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared, fresh = (data_with_empty_cache(data, folder / cache) for cache in ("shared", "fresh"))
        log.info(f"{STEPS} steps   temperature   LM forwards   pairs scored of asked   seconds")
        for temperature in TEMPERATURES:
            warm, summary = run(folder / "logs", temperature, shared, overrides)
            _show("shared cache", temperature, summary)
        cold, summary = run(folder / "logs", TEMPERATURES[-1], fresh, overrides)
        _show("empty cache", TEMPERATURES[-1], summary)
        without, summary = run(folder / "logs", TEMPERATURES[-1], fresh, [*overrides, "scorer.cache_megabytes=0"])
        _show("no cache", TEMPERATURES[-1], summary)
        log.info(f"loss curves bitwise equal: shared and empty cache {warm == cold}, shared and none {warm == without}")


def _show(name: str, temperature: float, summary: dict) -> None:
    asked, scored = summary["pairs_asked"], summary["pairs_scored"]
    log.info(f"{name:12} {temperature:10} {summary['lm_forwards']:13,} {scored:15,} of {asked:,} "
             f"{summary['wall_seconds']:9.0f}")  # fmt: skip


def compare_scores(cfg: DictConfig) -> None:
    """Compare the log-likelihoods of several sizes of a forward."""
    from dream.build import build_text
    from dream.scorers.base import Scoring
    from dream.store.permutation import permute

    OmegaConf.update(cfg, "scorer.cache_megabytes", 0)
    parts = build_text(cfg)
    store, scorer = parts.store, parts.scorer
    scorer.load(store)
    draw = torch.Generator().manual_seed(0)
    windows_B = torch.from_numpy(permute(0, torch.arange(WINDOWS).numpy(), len(store.windows)))
    candidates_BK = torch.randint(len(store.passages), (WINDOWS, CANDIDATES), generator=draw)
    for dtype in dict.fromkeys((cfg.scorer.scoring.dtype, "float32")):
        scorer.scoring = Scoring(**{**cfg.scorer.scoring, "dtype": dtype})
        scorer.to(scorer.device)
        first = None
        for tokens in TOKENS_PER_FORWARD:
            scorer.scoring.tokens_per_forward = tokens
            loglik_BK = scorer.loglik(store, windows_B, candidates_BK)
            first = loglik_BK if first is None else first
            same = torch.equal(loglik_BK.argsort(dim=1, stable=True), first.argsort(dim=1, stable=True))
            most = (loglik_BK - first).abs().max()
            log.info(f"{dtype:9} {tokens:6} tokens a forward: largest difference {most:.2e} nats, "
                     f"rankings {'equal' if same else 'DIFFERENT'}")  # fmt: skip


def measure(cfg: DictConfig) -> None:
    compare_scores(cfg)  # also prepares the store and the scorer, which the runs share
    compare_runs(Path(cfg.paths.data), [argument for argument in sys.argv[1:] if "=" in argument])


if __name__ == "__main__":
    command("train", __doc__, KEYS)(measure)()
