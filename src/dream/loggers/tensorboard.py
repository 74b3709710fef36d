"""TensorBoard logger. Related curves share a chart."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dream.utils.timing import PARTS

# Tab CUSTOM SCALARS: category → chart → curves. Curves of one chart have about the same range.
LAYOUT = {
    "Does the language model teach, and the retriever learn?": {
        "Entropy: LM posterior, retriever (nats); share of uniform posteriors": [
            "train/posterior_entropy",
            "train/retriever_entropy",
            "train/uniform_posteriors",
        ],
        "Gain (nats per token), agreement": ["train/gain", "train/agreement"],
        "Dev queries": ["val/ndcg_at_10", "val/recall_at_10", "val/recall_at_100", "val/mrr_at_10"],
    },
    "Is the index fresh? Where does the time go?": {
        "Index: age / interval, overlap": ["index/age_fraction", "index/overlap_at_10"],
        "Share of wall time": [f"perf/fraction_{part}" for part in PARTS if part != "prepare"],
        "Windows per second": ["perf/windows_per_second"],
    },
    "Is the training stable?": {
        "Loss (nats)": ["train/loss"],
        "Gradient norm": ["train/gradient_norm"],
        "Mean cosine of passages, queries (1: collapsed)": ["index/passage_cosine", "train/query_cosine"],
    },
}


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger in the run's folder, with `LAYOUT` and without charts of the epoch.

    Runs are counted in steps. Lightning's epoch is always 0.

    Args:
        save_dir: the run's folder; events are in its subfolder `tensorboard`.
    """

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
