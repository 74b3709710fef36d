"""Prints medians over seeds, from the summary.json of finished runs.

    dream-train -m experiment=quickstart seed=0,1,2 objective=kl_posterior,info_nce
    python benchmarks/seeds.py logs/quickstart/<date>_sweep/*

It groups the runs by the settings in which they differ, except the seed, and prints median [lowest, highest].
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from dream.utils.logging import log_table

COLUMNS = {
    "bm25/ndcg_at_10": "BM25",
    "untrained/ndcg_at_10": "untrained",
    "trained/ndcg_at_10": "trained",
    "hybrid/ndcg_at_10": "hybrid",
    "val/ndcg_at_10": "dev",
    "wall_seconds": "wall s",
}
IGNORED = ("seed", "paths", "hydra")


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dictionary to dotted key → value as JSON."""
    if not isinstance(node, dict):
        return {prefix: json.dumps(node)}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{prefix}.{name}").items()}


def settings(run: Path) -> dict[str, Any]:
    """The run's config by dotted key, without seeds and paths."""
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    flat = flatten(config)
    run_path = json.dumps(config["paths"]["run"]).strip('"')  # type: ignore[index,call-overload]
    return {
        key.lstrip("."): value
        for key, value in flat.items()
        if run_path not in value and not key.endswith(".seed") and key.split(".")[1] not in IGNORED
    }


def label(config: dict[str, Any], varying: set[str]) -> str:
    """Name of the run's group. If objectives differ, only the objective's class is shown, not its settings."""
    if "objective._target_" in varying:
        varying = {key for key in varying if not key.startswith("objective.")} | {"objective._target_"}
    parts = [f"{key}={str(config.get(key)).strip(chr(34)).rsplit('.', 1)[-1]}" for key in sorted(varying)]
    return "\n".join(parts) or "all runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    runs = [run for run in parser.parse_args().runs if (run / "summary.json").exists()]
    if not runs:
        parser.error("none of these folders is a finished run")
    configs = {run: settings(run) for run in runs}
    keys = set().union(*configs.values())
    varying = {key for key in keys if len({config.get(key) for config in configs.values()}) > 1}
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in runs:
        groups[label(configs[run], varying)].append(json.loads((run / "summary.json").read_text()))
    table = Table(title="nDCG@10, median \\[lowest, highest] over the seeds", title_justify="left")
    table.add_column("")
    table.add_column("seeds", justify="right")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for name, summaries in groups.items():
        cells = []
        for column in COLUMNS:
            values = sorted(summary[column] for summary in summaries if column in summary)
            digits = 0 if column == "wall_seconds" else 4
            spread = (
                f"\n[{values[0]:.{digits}f}, {values[-1]:.{digits}f}]" if values and values[0] != values[-1] else ""
            )
            cells.append(f"{statistics.median(values):.{digits}f}{spread}" if values else "")
        table.add_row(name, str(len(summaries)), *cells)
    log_table(table, width=150)


if __name__ == "__main__":
    main()
