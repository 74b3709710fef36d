"""The difference between the same system of two evaluations of the same queries, with interval and p-value.

    dream-evaluate run=SWEEP_A split=test            # once for each sweep; it prints its output folder
    python benchmarks/difference.py EVALUATION_A EVALUATION_B --system run

Seeds are paired in order. It is used for runs with and without the language model's word.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dream.evaluation.statistics import Sampling, compare


def values_of(folder: Path, system: str, metric: str) -> tuple[np.ndarray, list[str]]:
    """(values_SQ: one row for each seed, ids of the queries)"""
    rows: dict[str, dict[str, float]] = {}
    for line in (folder / "per_query.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["system"].split(" seed=")[0] == system:
            rows.setdefault(row["system"], {})[row["query"]] = row[metric]
    queries = sorted(next(iter(rows.values())))
    return np.array([[values[query] for query in queries] for values in rows.values()]), queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs=2, type=Path, help="output folders of dream-evaluate")
    parser.add_argument("--system", default="run")
    parser.add_argument("--metric", default="ndcg_at_10")
    chosen = parser.parse_args()
    (a_SQ, queries), (b_SQ, others) = (values_of(one, chosen.system, chosen.metric) for one in chosen.evaluations)
    assert queries == others, "the evaluations have different queries"
    (found,) = compare([a_SQ], b_SQ, Sampling(10_000, 0.95, 0))
    low, high = found.interval
    print(f"{chosen.system}, {len(queries):,} queries, {len(a_SQ)} and {len(b_SQ)} seeds: {a_SQ.mean():.4f} - "
          f"{b_SQ.mean():.4f} = {found.mean:+.4f} [{low:+.4f}, {high:+.4f}], p {found.p:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
