"""TensorBoard curves, with related ones on one chart."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

# Tab CUSTOM SCALARS: category → chart → curves.
LAYOUT = {
    "Does the language model teach?": {
        "Entropy, nats": ["train/posterior_entropy", "train/retriever_entropy"],
        "Gain of the best candidate, nats a token": ["train/gain"],
        "Agreement on the best candidate": ["train/agreement"],
    },
    "Does the retriever learn?": {
        "Loss, nats": ["train/loss"],
        "Dev queries": ["val/ndcg_at_10", "val/recall_at_10", "val/recall_at_100", "val/mrr_at_10"],
        "Gradient norm": ["train/gradient_norm"],
    },
    "Is the index fresh?": {
        "Age, steps": ["index/age_steps"],
        "Overlap of neighbours with the snapshot before": ["index/overlap_at_10"],
        "Mean cosine (1: collapsed)": ["index/passage_cosine", "train/query_cosine"],
    },
    "Where does the time go?": {
        "Share of wall time": [
            f"perf/fraction_{part}" for part in ("data", "encode", "propose", "score", "step", "refresh")
        ],
        "Windows a second": ["perf/windows_per_second"],
    },
}


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's logger in the run's folder, with a layout, and without the epoch, which runs do not have."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="tensorboard", version="")
        self._has_layout = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._has_layout:
            self._has_layout = True
            charts = {
                category: {title: ["Multiline", curves] for title, curves in charts.items()}
                for category, charts in LAYOUT.items()
            }
            self.experiment.add_custom_scalars(charts)
        shown: dict[str, Any] = {name: value for name, value in metrics.items() if name != "epoch"}
        super().log_metrics(shown, step)
