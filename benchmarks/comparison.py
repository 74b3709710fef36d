"""Makes one Markdown table from several evaluations of the same split: each system's mean over queries and seeds.

    dream-evaluate run=[logs/a/0,logs/a/1]          # once for each objective; it prints its output folder
    python benchmarks/comparison.py info_nce=logs/evaluations/2026-… kl_posterior=logs/evaluations/2026-…

The name before `=` replaces `run` in the rows of that evaluation. If a system is in several folders, it is shown once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dream.utils.logging import get_logger

log = get_logger(__name__)

METRICS = {"ndcg_at_10": "nDCG@10", "recall_at_10": "recall@10", "recall_at_100": "recall@100", "mrr_at_10": "MRR@10"}


def named(system: str, name: str) -> str:
    """The table's name of a system, in the evaluation that is called `name`."""
    if system == "run":
        return name
    kind, _, other = system.partition(":")
    hybrids = {"hybrid": "hybrid with", "hybrid_weighted": "weighted hybrid with"}
    return f"{hybrids[kind]} {other or name}" if kind in hybrids else system


def row_of(system: str, found: dict[str, Any], main: str) -> list[str]:
    """Cells of the row. `found`: the system's entry in results.json."""
    low, high = found[main]["interval"]
    row = [system, str(found["runs"]), f"{found[main]['mean']:.3f} [{low:.3f}, {high:.3f}]"]
    row += [f"{found[metric]['mean']:.3f}" for metric in METRICS if metric != main]
    if "against_baseline" not in found[main]:
        return [*row, "", ""]
    against = found[main]["against_baseline"]
    low, high = against["interval"]
    return [*row, f"{against['mean']:+.3f} [{low:+.3f}, {high:+.3f}]", f"{against['p']:.4f}"]


def table(evaluations: dict[str, dict[str, Any]]) -> str:
    """The Markdown table, without the rows of single seeds."""
    first = next(iter(evaluations.values()))
    main, share = first["metric"], f"{first['statistics']['confidence']:.0%}"
    others = [title for metric, title in METRICS.items() if metric != main]
    header = ["", "seeds", f"{METRICS[main]} [{share}]", *others, f"− {first['baseline']} [{share}]", "p"]
    lines = [f"{first['corpus']}, {first['queries']:,} queries of split {first['split']}, {first['documents']:,} "
             "documents", "", f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]  # fmt: skip
    seen: set[str] = set()
    for name, results in evaluations.items():
        same = [results[key] == first[key] for key in ("corpus", "split", "queries", "documents", "metric", "baseline")]
        if not all(same):
            raise SystemExit(
                f"{name}: queries, documents, metric or baseline differ from those of the first evaluation"
            )
        for short in results["names"].values():
            system = named(short, name)
            if system not in seen:
                seen.add(system)
                lines.append(f"| {' | '.join(row_of(system, results['systems'][short], main))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="NAME=FOLDER", help="a folder of dream-evaluate")
    chosen = [text.partition("=") for text in parser.parse_args().evaluations]
    read = {name: json.loads((Path(folder) / "results.json").read_text()) for name, _, folder in chosen}
    log.info(table(read))


if __name__ == "__main__":
    main()
