"""What an evaluation found: every system's metrics, their intervals, and its differences from the baseline.

Shape suffixes: S runs (seeds) of a system, Q labelled queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from dream.evaluation.metrics import METRICS, Judgements
from dream.evaluation.report import TITLES
from dream.evaluation.statistics import Difference, Sampling, compare, intervals

Values = dict[str, np.ndarray]  # metric → values_SQ


@dataclass
class Results:
    """`rows` by name, in the order of the table. A system of several runs has a row for each and one for all."""

    rows: dict[str, Values]
    metric: str
    baseline: str
    sampling: Sampling
    intervals: dict[str, dict[str, tuple[float, float]]]  # row → metric → interval of the mean
    differences: dict[str, dict[str, Difference]]  # row → metric; the baseline has none
    notes: list[str]

    @classmethod
    def of(cls, rows: dict[str, Values], metric: str, baseline: str, sampling: Sampling, notes: list[str]) -> "Results":
        names, rivals = list(rows), [name for name in rows if name != baseline]
        flat = [rows[name][one] for name in names for one in METRICS]
        bounds = iter(intervals(flat, sampling))
        spans = {name: {one: next(bounds) for one in METRICS} for name in names}
        differences: dict[str, dict[str, Difference]] = {name: {} for name in rivals}
        for one in METRICS if rivals else ():
            found = compare([rows[name][one] for name in rivals], rows[baseline][one], sampling)
            for name, difference in zip(rivals, found, strict=True):
                differences[name][one] = difference
        return cls(rows, metric, baseline, sampling, spans, differences, notes)

    def mean(self, row: str, metric: str) -> float:
        return float(self.rows[row][metric].mean())

    def flat(self) -> dict[str, float]:
        """`bm25/ndcg_at_10` and so on."""
        return {f"{row}/{metric}": self.mean(row, metric) for row in self.rows for metric in METRICS}

    def as_json(self) -> dict[str, Any]:
        """Everything but the single queries."""
        systems: dict[str, Any] = {}
        for row, values in self.rows.items():
            systems[row] = {"runs": len(values[self.metric])}
            for metric in METRICS:
                found: dict[str, Any] = {"mean": self.mean(row, metric), "interval": list(self.intervals[row][metric])}
                if row in self.differences:
                    found["against_baseline"] = asdict(self.differences[row][metric])
                systems[row][metric] = found
        return {"metric": self.metric, "baseline": self.baseline, "statistics": asdict(self.sampling),
                "systems": systems, "notes": self.notes}  # fmt: skip

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table, as text."""
        share, title = f"{self.sampling.confidence:.0%}", TITLES[self.metric]
        header = ["", *(TITLES[metric] for metric in METRICS), f"{title} {share}", f"Δ {self.baseline}", f"Δ {share}",
                  "p", "better/worse"]  # fmt: skip
        lines = []
        for row in self.rows:
            line = [row, *(f"{self.mean(row, metric):.4f}" for metric in METRICS)]
            line.append("{:.3f}–{:.3f}".format(*self.intervals[row][self.metric]))
            if row in self.differences:
                found = self.differences[row][self.metric]
                line += [f"{found.mean:+.4f}", "{:+.3f} – {:+.3f}".format(*found.interval), f"{found.p:.4f}",
                         f"{found.wins}/{found.losses}"]  # fmt: skip
            lines.append(line + [""] * (len(header) - len(line)))
        return header, lines

    def table(self, title: str) -> Table:
        """For the terminal; the best value of a metric is bold."""
        header, lines = self.cells()
        best = {1 + at: max(line[1 + at] for line in lines) for at in range(len(METRICS))}
        drawn = Table(title=title, title_justify="left")
        for at, name in enumerate(header):
            drawn.add_column(name, justify="right" if at else "left", overflow="fold")
        for line in lines:
            drawn.add_row(*(f"[bold]{cell}[/]" if cell == best.get(at) else cell for at, cell in enumerate(line)))
        return drawn

    def markdown(self, title: str) -> str:
        """The table, the notes, and how the figures were made."""
        header, lines = self.cells()
        rows = [f"| {' | '.join(line)} |" for line in [header, ["---", *["---:"] * (len(header) - 1)], *lines]]
        return "\n".join([f"# {title}", "", *rows, "", *(f"- {note}" for note in self.notes), ""])


def rows_of(values: Mapping[str, Sequence[dict[str, np.ndarray]]], runs: Sequence[str]) -> dict[str, Values]:
    """Rows from each system's metrics by query, one mapping for each run; `runs` names the runs."""
    rows: dict[str, Values] = {}
    for system, of_runs in values.items():
        together = {metric: np.stack([one[metric] for one in of_runs]) for metric in METRICS}
        for number, name in enumerate(runs if len(of_runs) > 1 else ()):
            rows[f"{system} {name}"] = {
                metric: values_SQ[number : number + 1] for metric, values_SQ in together.items()
            }
        rows[system] = together
    return rows


def notes_of(judgements: Judgements, counts: Mapping[str, int], sampling: Sampling, metric: str) -> list[str]:
    """How queries and documents count that somebody might think were dropped, and how to read the figures."""
    missing, touched = sum(map(len, judgements.missing)), sum(map(bool, judgements.missing))
    notes = [
        f"Means over {len(judgements):,} queries. {judgements.left_out:,} further queries of the split have no relevant "
        "document in its labels: no ranking of them can be right or wrong, and they are in no mean.",
        f"{missing:,} relevant documents, of {touched:,} queries, are not in the corpus: they count as not found.",
        f"{counts.get('empty', 0):,} documents without text cannot be found, and {counts.get('duplicates', 0):,} copies "
        "of other documents count as these.",
        f"{TITLES[metric]} and its difference are given with {sampling.confidence:.0%} bootstrap intervals over queries, "
        f"and over runs where there are several; p is of the two-sided randomisation test over queries; "
        f"{sampling.resamples:,} resamples each, not corrected for the number of systems.",
    ]  # fmt: skip
    return notes
