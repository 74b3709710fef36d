"""Plots of a corpus before training: lengths of documents, and windows of a document."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from dream.utils.atomic_io import write_bytes

BINS = 40
BAR, LINE = "#a9c1de", "#b04a4a"


def histogram(values_N: np.ndarray, label: str, title: str, marks: dict[str, float]) -> Figure:
    """Number of documents by a count, with a logarithmic axis. Zeros are a bar of their own, at the left.

    Args:
        values_N: the count of each document.
        label: name of the count.
        title: what the plot shows.
        marks: dashed lines by name.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    zeros, positive_N = int((values_N == 0).sum()), values_N[values_N > 0]
    most = max(int(positive_N.max(initial=1)), 2)
    edges = np.unique(np.round(np.geomspace(1, most + 1, BINS + 1)))
    axes.hist(positive_N, bins=edges.tolist(), color=BAR, edgecolor="white", linewidth=0.4)
    if zeros:
        axes.bar(0.6, zeros, width=0.25, color="#d9a9a9")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(0.45 if zeros else 0.9, (most + 1) * 1.1)
    if zeros:
        axes.set_xticks([0.6, *(10.0**power for power in range(len(str(most))))])
        axes.set_xticklabels(["0", *(f"{10**power:,}" for power in range(len(str(most))))])
    for row, (name, value) in enumerate(marks.items()):
        axes.axvline(max(value, 0.6), color=LINE, linewidth=1, linestyle="--")
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "top"}
        axes.text(max(value, 0.6), 0.97 - 0.09 * row, f" {name}: {value:,g}", fontsize=8, color=LINE, **place)
    axes.set(xlabel=label, ylabel="documents")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_bytes(path, image.getvalue())
