"""Writes benchmarks/README.md from the results of the benchmarks: python benchmarks/report.py"""

import json
from pathlib import Path
from typing import Any

from side_by_side import RESULTS

INTRODUCTION = """# Speed, side by side

Each row is a ratio that was measured in one process, DREAM and its peer in turn: the median of 5 rounds, or
of as many as the command names. Seconds depend on the machine, ratios less. `make bench` repeats most of it, and writes
this page.

Ratios are the peer's time / our time: above 1, DREAM is faster. Ratios with ≤ are our time / the least that the same
work needs, or / the time that is wanted.
"""


def cell(row: dict[str, Any]) -> str:
    """Ratio and bar, and whether the bar is reached."""
    if row["bar"] is None:
        return f"{row['ratio']:.2f}"
    sign, reached = ("≤", row["ratio"] <= row["bar"]) if row["at_most"] else ("≥", row["ratio"] >= row["bar"])
    return f"{row['ratio']:.2f} ({sign} {row['bar']:g}: {'reached' if reached else '**not reached**'})"


def page() -> str:
    parts = [INTRODUCTION]
    for file in sorted(RESULTS.glob("*.json")):
        content = json.loads(file.read_text())
        machine = content["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in machine["packages"].items() if number)
        parts.append(f"## {file.stem.replace('_', ' ').capitalize()}\n\n`{content['command']}`\n")
        parts.append("| work | DREAM | peer | ratio | |\n|---|---|---|---|---|")
        parts += [f"| {row['work']} | {row['ours']} | {row['peer']} | {cell(row)} | {row['floor']} |"
                  for row in content["rows"]]  # fmt: skip
        flags = ", ".join(machine["flags"]) or "no AVX2"
        parts.append(f"\n{machine['processor']}, {machine['threads']} threads, {flags}; Python {machine['python']}, "
                     f"{versions}\n")  # fmt: skip
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("README.md").write_text(page())
