"""Makes the table and the picture of the ablation from the runs of a sweep.

    dream-train -m experiment=ablation/kl_posterior,ablation/marginal seed=0,1,2    # any settings of the ablation
    python benchmarks/ablation.py logs/ablation/<date>_sweep --picture docs/ablation.png

Each row is a setting: mean [lowest, highest] of the seeds. `gain by training` is the difference between the trained and
the untrained encoder of the same seed, which have the same initial weights. `wall s` depends on the number of cached
log-likelihoods. `pairs scored` counts the log-likelihoods that were not cached. Objectives that change the model's
attention cache nothing and score no pairs.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from dream.utils.logging import get_logger

log = get_logger(__name__)

METRIC = "ndcg_at_10"
COLUMNS = ("setting", "seeds", "windows", "nDCG@10", "gain by training", "hybrid", "pairs scored", "wall s")


def read(sweeps: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """Setting → summaries of its finished runs, in the order of the seeds."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for summary in sorted(path for sweep in sweeps for path in sweep.rglob("summary.json")):
        config: Any = OmegaConf.load(summary.with_name("config.yaml"))
        groups[config.label.rpartition("/")[2]].append(json.loads(summary.read_text()))
    return {label: sorted(runs, key=lambda run: run["seed"]) for label, runs in groups.items()}


def values(runs: list[dict[str, Any]], system: str) -> list[float]:
    return [run[f"{system}/{METRIC}"] for run in runs]


def gains(runs: list[dict[str, Any]]) -> list[float]:
    return [a - b for a, b in zip(values(runs, "trained"), values(runs, "untrained"), strict=True)]


def spread(numbers: list[float], sign: str = "") -> str:
    return f"{mean(numbers):{sign}.4f} [{min(numbers):{sign}.4f}, {max(numbers):{sign}.4f}]"


def markdown(groups: dict[str, list[dict[str, Any]]]) -> str:
    """The table, the best setting first, then the untrained encoder and BM25."""
    rows = sorted(groups.items(), key=lambda item: -mean(values(item[1], "trained")))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for label, runs in rows:
        cells = [
            f"`{label}`",
            str(len(runs)),
            f"{runs[0]['windows']:,}",
            spread(values(runs, "trained")),
            spread(gains(runs), "+"),
            spread(values(runs, "hybrid")),
            f"{mean(run.get('pairs_scored', 0) for run in runs):,.0f}",
            f"{mean(run['wall_seconds'] for run in runs):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    everything = [run for runs in groups.values() for run in runs]
    for system in ("untrained", "bm25"):
        lines.append(f"| *{system}* | | | {spread(values(everything, system))} | | | | |")
    return "\n".join(lines)


def picture(groups: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Draw the gain by training: a dot for each seed, a line for each setting."""
    from matplotlib.figure import Figure

    rows = sorted(groups.items(), key=lambda item: mean(gains(item[1])))
    figure = Figure(figsize=(7, 1.2 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, runs) in enumerate(rows):
        axes.plot([min(gains(runs)), max(gains(runs))], [place, place], color="#7b9cc4", linewidth=3, alpha=0.6)
        axes.plot(gains(runs), [place] * len(runs), "o", color="#2f4f7f", markersize=4)
    axes.axvline(0, color="#b04a4a", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), labels=[label for label, _ in rows], fontsize=8)
    axes.set_xlabel("nDCG@10 minus that of the untrained encoder; a dot is a seed")
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="folders of sweeps on the same corpus")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    parser.add_argument("--title", default="")
    chosen = parser.parse_args()
    groups = read(chosen.sweeps)
    if not groups:
        parser.error(f"no finished run below {', '.join(map(str, chosen.sweeps))}")
    log.info(markdown(groups))
    if chosen.picture:
        picture(groups, chosen.title, chosen.picture)


if __name__ == "__main__":
    main()
