"""Two plots of an evaluation: the metric of each system, and its difference from the baseline for each query."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dream.evaluation.metrics import TITLES
from dream.evaluation.results import Results


def systems_of(results: Results) -> list[str]:
    """Names of the rows without those of single runs: one for each system."""
    prefixes = tuple(f"{name} " for name, values in results.rows.items() if len(values[results.metric]) > 1)
    return [name for name in results.rows if not name.startswith(prefixes)]


def bars(results: Results, title: str) -> Figure:
    """Bars: the metric of each system with its interval. Dots: the system's single runs."""
    names = systems_of(results)
    means = np.array([results.mean(name, results.metric) for name in names])
    low, high = np.array([results.intervals[name][results.metric] for name in names]).T
    figure = Figure(figsize=(7, 1.3 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    errors = np.clip([means - low, high - means], 0, None)
    axes.barh(names, means, xerr=errors, color="#a9c1de", error_kw={"ecolor": "#333333", "capsize": 3})
    for at, name in enumerate(names):
        runs_S = results.rows[name][results.metric].mean(1)
        if len(runs_S) > 1:
            axes.plot(runs_S, np.full(len(runs_S), at), "o", color="#1f4e86", markersize=4, alpha=0.7, zorder=3)
        axes.text(0.01, at, f"{means[at]:.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.invert_yaxis()
    axes.axvline(results.mean(results.baseline, results.metric), color="#b04a4a", linewidth=1, linestyle="--")
    dots = "; dots: single seeds" if any(len(results.rows[name][results.metric]) > 1 for name in names) else ""
    axes.set_xlim(left=0)
    interval = f"{TITLES[results.metric]} with {results.sampling.confidence:.0%} interval"
    # The label belongs to the figure: long names of systems leave too little space for a label of the axes.
    figure.supxlabel(f"{interval}; dashed: {results.baseline}{dots}", fontsize=9)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure


def gains(results: Results, title: str) -> Figure:
    """One curve for each system: its difference from the baseline for each query, sorted. Mean over its runs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    baseline_Q = results.rows[results.baseline][results.metric].mean(0)
    share_Q = np.linspace(0, 100, len(baseline_Q))
    others = [name for name in systems_of(results) if name in results.differences]
    for name in others:
        difference_Q = results.rows[name][results.metric].mean(0) - baseline_Q
        better, worse = (difference_Q > 0).mean(), (difference_Q < 0).mean()
        label = f"{name} (better {better:.0%}, worse {worse:.0%})"
        axes.plot(share_Q, np.sort(difference_Q)[::-1], label=label, linewidth=1.5)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_xlabel("queries, %, largest gain first")
    axes.set_ylabel(f"{TITLES[results.metric]} − {results.baseline}'s")
    if others:
        axes.legend(fontsize=8, loc="lower left")  # the curves fall from upper left to lower right
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image: (height, width, 3), uint8."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
