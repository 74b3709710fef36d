"""Plots of a study of dream-tune: which keys matter, and how each trial did."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dream.utils.atomic_io import write_bytes

if TYPE_CHECKING:
    from optuna.study import Study

LEAST_TRIALS = 4  # fewer trials say nothing about importance


def write_plots(study: "Study", folder: Path, metric: str) -> list[str]:
    """Write PNGs: the importance of each key, a parallel-coordinates plot, and the metric by each key.

    Importance is PED-ANOVA (Watanabe et al., IJCAI 2023): how differently a key is distributed in good trials.

    Returns:
        The names of the files; none if there are too few trials.
    """
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as plots

    if len(study.get_trials(states=(TrialState.COMPLETE,))) < LEAST_TRIALS:
        return []
    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        made = {
            "importance.png": lambda: plots.plot_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target_name=metric
            ),
            "parallel.png": lambda: plots.plot_parallel_coordinate(study, target_name=metric),
            "slices.png": lambda: plots.plot_slice(study, target_name=metric),
        }
        for name, plot in made.items():
            plot()
            figure = plt.gcf()
            figure.set_size_inches(max(8, 3.5 * len(study.best_params)) if name == "slices.png" else 8, 4.5)
            for axes in figure.axes if name == "slices.png" else ():
                axes.xaxis.set_minor_formatter(NullFormatter())  # minor labels of a logarithmic axis overlap
            image = BytesIO()
            figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
            write_bytes(folder / name, image.getvalue())
            plt.close(figure)
    return list(made)
