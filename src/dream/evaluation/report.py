"""The table at the end of a run."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from dream.evaluation.metrics import METRICS

TITLES = {"ndcg_at_10": "nDCG@10", "recall_at_10": "recall@10", "recall_at_100": "recall@100", "mrr_at_10": "MRR@10",
          "map_at_100": "MAP@100", "success_at_1": "success@1", "success_at_5": "success@5"}  # fmt: skip
HEADLINE = METRICS[:4]  # of the table at the end of a run
SYSTEMS = ("bm25", "untrained", "trained", "hybrid")


def table(results: Mapping[str, Mapping[str, float]], title: str, metrics: Sequence[str] = HEADLINE) -> Table:
    """One row for each system, those of `SYSTEMS` first, in that order; the best value of a column is bold."""
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("")
    for metric in metrics:
        drawn.add_column(TITLES[metric], justify="right")
    best = {metric: max((row[metric] for row in results.values()), default=0.0) for metric in metrics}
    for system in [*(s for s in SYSTEMS if s in results), *(s for s in results if s not in SYSTEMS)]:
        values = results[system]
        cells = [f"[bold]{values[m]:.4f}[/]" if values[m] == best[m] else f"{values[m]:.4f}" for m in metrics]
        drawn.add_row(system, *cells)
    return drawn


def flat_summary(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`bm25/ndcg_at_10` and so on, for summary.json."""
    return {f"{system}/{metric}": value for system, values in results.items() for metric, value in values.items()}
