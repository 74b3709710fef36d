"""Two pictures of an evaluation: how good the systems are, and which queries they gain and lose."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dream.evaluation.report import TITLES
from dream.evaluation.results import Results


def bars(results: Results, title: str) -> Figure:
    """The metric of each system with its interval."""
    names = list(results.rows)
    means = np.array([results.mean(name, results.metric) for name in names])
    low, high = np.array([results.intervals[name][results.metric] for name in names]).T
    figure = Figure(figsize=(7, 1.6 + 0.35 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    errors = np.clip([means - low, high - means], 0, None)
    axes.barh(names, means, xerr=errors, color="#7b9cc4", error_kw={"ecolor": "#333333", "capsize": 3})
    axes.invert_yaxis()
    axes.axvline(results.mean(results.baseline, results.metric), color="#b04a4a", linewidth=1, linestyle="--")
    axes.set_xlabel(f"{TITLES[results.metric]} with {results.sampling.confidence:.0%} interval; dashed: "
                    f"{results.baseline}")  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def gains(results: Results, title: str) -> Figure:
    """Each query's difference from the baseline, the best first: one curve a system, mean over its runs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    baseline_Q = results.rows[results.baseline][results.metric].mean(0)
    share_Q = np.linspace(0, 100, len(baseline_Q))
    for name in results.differences:
        difference_Q = results.rows[name][results.metric].mean(0) - baseline_Q
        axes.plot(share_Q, np.sort(difference_Q)[::-1], label=name, linewidth=1.5)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_xlabel("queries, %, the greatest gain first")
    axes.set_ylabel(f"{TITLES[results.metric]} − {results.baseline}'s")
    if results.differences:
        axes.legend(fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """(height, width, 3) bytes."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
