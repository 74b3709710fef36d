"""Results of an evaluation: the metrics of each system, their intervals, and the differences from the baseline.

Shape suffixes: S runs (seeds) of a system, Q labelled queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from dream.evaluation.metrics import METRICS, TITLES, Judgements
from dream.evaluation.statistics import Difference, Sampling, compare, intervals

Values = dict[str, np.ndarray]  # metric → values_SQ
HEADLINE = METRICS[:4]  # columns of the table at the end of a run


def summary_table(results: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """The table at the end of a run: one row for each system. The best value of each column is bold."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for metric in HEADLINE:
        table.add_column(TITLES[metric], justify="right")
    best = {metric: max(row[metric] for row in results.values()) for metric in HEADLINE}
    for system, values in results.items():
        cells = [f"[bold]{values[m]:.4f}[/]" if values[m] == best[m] else f"{values[m]:.4f}" for m in HEADLINE]
        table.add_row(system, *cells)
    return table


def flat_summary(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Flat names for summary.json, e.g. `bm25/ndcg_at_10`."""
    return {f"{system}/{metric}": value for system, values in results.items() for metric, value in values.items()}


@dataclass
class Results:
    """The results of all systems. A system with several runs has one row for each run, and one row for all runs.

    Attributes:
        rows: name of the row → metric → values_SQ, in the order of the table.
        metric: metric of the second table and of the plots.
        baseline: the row that the other rows are compared with.
        sampling: settings of intervals and tests.
        intervals: row → metric → confidence interval of the mean.
        differences: row → metric → difference from the baseline; without the baseline's row.
        notes: how to read the figures.
    """

    rows: dict[str, Values]
    metric: str
    baseline: str
    sampling: Sampling
    intervals: dict[str, dict[str, tuple[float, float]]]
    differences: dict[str, dict[str, Difference]]
    notes: list[str]

    @classmethod
    def of(cls, rows: dict[str, Values], metric: str, baseline: str, sampling: Sampling, notes: list[str]) -> "Results":
        """Compute intervals and differences of all rows."""
        names, others = list(rows), [name for name in rows if name != baseline]
        flat = [rows[name][one] for name in names for one in METRICS]
        bounds = iter(intervals(flat, sampling))
        spans = {name: {one: next(bounds) for one in METRICS} for name in names}
        differences: dict[str, dict[str, Difference]] = {name: {} for name in others}
        for one in METRICS if others else ():
            found = compare([rows[name][one] for name in others], rows[baseline][one], sampling)
            for name, difference in zip(others, found, strict=True):
                differences[name][one] = difference
        return cls(rows, metric, baseline, sampling, spans, differences, notes)

    def mean(self, row: str, metric: str) -> float:
        """Mean over queries and runs."""
        return float(self.rows[row][metric].mean())

    def flat(self) -> dict[str, float]:
        """All means with flat names, e.g. `bm25/ndcg_at_10`."""
        return {f"{row}/{metric}": self.mean(row, metric) for row in self.rows for metric in METRICS}

    def as_json(self) -> dict[str, Any]:
        """All results except the values of single queries, as JSON values."""
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

    def metric_cells(self) -> list[list[str]]:
        """Header and rows of the first table as text: the means of all metrics."""
        header = ["", *(TITLES[metric] for metric in METRICS)]
        return [header, *([row, *(f"{self.mean(row, metric):.4f}" for metric in METRICS)] for row in self.rows)]

    def difference_cells(self) -> list[list[str]]:
        """Header and rows of the second table as text: `metric`, its difference from the baseline, and intervals."""
        share = f"{self.sampling.confidence:.0%}"
        lines = [["", TITLES[self.metric], share, f"− {self.baseline}", share, "p", "better", "worse"]]
        for row in self.rows:
            low, high = self.intervals[row][self.metric]
            line = [row, f"{self.mean(row, self.metric):.4f}", f"{low:.4f} to {high:.4f}"]
            if row in self.differences:
                found = self.differences[row][self.metric]
                line += [f"{found.mean:+.4f}", "{:+.4f} to {:+.4f}".format(*found.interval), f"{found.p:.4f}",
                         f"{found.wins:,}", f"{found.losses:,}"]  # fmt: skip
            lines.append(line + [""] * (len(lines[0]) - len(line)))
        return lines

    def tables(self, title: str) -> list[Table]:
        """Both tables for the terminal. The best value of each metric is bold."""
        metrics, differences = self.metric_cells(), self.difference_cells()
        best = [max(column) for column in zip(*metrics[1:], strict=True)]
        marked = [[cell if at == 0 or cell != best[at] else f"[bold]{cell}[/]" for at, cell in enumerate(line)]
                  for line in metrics[1:]]  # fmt: skip
        drawn = []
        for heading, (header, *lines) in ((title, [metrics[0], *marked]), ("", differences)):
            drawn.append(table := Table(title=heading or None, title_justify="left"))
            for at, name in enumerate(header):
                table.add_column(name, justify="right" if at else "left", overflow="fold")
            for line in lines:
                table.add_row(*line)
        return drawn

    def markdown(self, title: str) -> str:
        """Both tables and the notes as Markdown."""
        text = [f"# {title}", ""]
        for header, *lines in (self.metric_cells(), self.difference_cells()):
            rule = ["---", *["---:"] * (len(header) - 1)]
            text += [*(f"| {' | '.join(line)} |" for line in [header, rule, *lines]), ""]
        return "\n".join([*text, *(f"- {note}" for note in self.notes), ""])


def rows_of(values: Mapping[str, Sequence[dict[str, np.ndarray]]], runs: Sequence[str]) -> dict[str, Values]:
    """The rows of all systems, for `Results`.

    Args:
        values: system → for each of its runs: metric → values of all queries.
        runs: names of the runs, for systems that have several.
    """
    rows: dict[str, Values] = {}
    for system, of_runs in values.items():
        stacked = {metric: np.stack([run[metric] for run in of_runs]) for metric in METRICS}
        for number, name in enumerate(runs if len(of_runs) > 1 else ()):
            rows[f"{system} {name}"] = {metric: values_SQ[number : number + 1] for metric, values_SQ in stacked.items()}
        rows[system] = stacked
    return rows


def way_to_teacher(results: Results, students: Sequence[str], teachers: Sequence[str], start: str) -> list[str]:
    """How far each student has come from `start` to the best teacher: (student - start) / (teacher - start).

    Args:
        results: results of all systems, for their `metric`.
        students: rows of trained retrievers.
        teachers: rows of language models that rank the documents of `start` again.
        start: the row of BM25.

    Returns:
        One sentence for each student, or one if no teacher is better than `start`; none if one of the three is missing.
    """
    if not students or not teachers or start not in results.rows:
        return []
    value = lambda row: results.mean(row, results.metric)  # noqa: E731
    teacher = max(teachers, key=value)
    low, high = value(start), value(teacher)
    metric = TITLES[results.metric]
    if high <= low:
        return [f"{teacher} ({high:.4f}) is no better than {start} ({low:.4f}) in {metric}: this language model is not "
                "a good teacher for these queries."]  # fmt: skip
    notes = []
    for student in students:
        share = (value(student) - low) / (high - low)
        remark = f": it is worse than {start}" if share < 0 else ": it is better than its teacher" if share > 1 else ""
        notes.append(f"{student} ({value(student):.4f}) has reached {share:.0%} of the way from {start} ({low:.4f}) to "
                     f"its teacher {teacher} ({high:.4f}) in {metric}{remark}.")  # fmt: skip
    return notes


def notes_of(judgements: Judgements, counts: Mapping[str, int], sampling: Sampling, metric: str) -> list[str]:
    """Notes for readers of the tables: how missing labels and documents are counted, and what the figures mean."""
    missing, touched = sum(map(len, judgements.missing)), sum(map(bool, judgements.missing))
    return [
        f"Means over {len(judgements):,} queries. {judgements.left_out:,} further queries of the split have no "
        "relevant document in the labels: they are not part of the means (trec_eval counts them as 0).",
        f"{missing:,} relevant documents (of {touched:,} queries) are not in the corpus: they count as not found.",
        f"{counts.get('empty', 0):,} documents without text cannot be found; {counts.get('duplicates', 0):,} "
        "documents are copies of others: finding the kept copy counts.",
        f"{TITLES[metric]} and its difference: {sampling.confidence:.0%} bootstrap intervals over queries, and over "
        "runs if a system has several. p: two-sided randomisation test over queries. "
        f"{sampling.resamples:,} resamples each, not corrected for the number of systems.",
    ]  # fmt: skip
