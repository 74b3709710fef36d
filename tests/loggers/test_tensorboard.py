"""TensorBoard's charts. Run: pytest tests/loggers/test_tensorboard.py"""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from dream.loggers.tensorboard import LAYOUT, RunTensorBoardLogger
from dream.utils.timing import PARTS


def read(logger: RunTensorBoardLogger) -> EventAccumulator:
    return EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()


def test_there_is_no_chart_of_the_epoch(tmp_path) -> None:
    logger = RunTensorBoardLogger(str(tmp_path))
    for step in (1, 2):
        logger.log_metrics({"train/loss": 3.0 - step, "epoch": 0}, step)
    logger.finalize("success")
    events = read(logger)
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert Path(logger.log_dir) == tmp_path / "tensorboard"


def test_the_layout(tmp_path) -> None:
    logger = RunTensorBoardLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_metrics({"train/loss": 1.0}, 2)
    logger.finalize("success")
    (event,) = read(logger).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    found = {category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
             for category in layout.category}  # fmt: skip
    assert found == LAYOUT


@pytest.mark.parametrize(
    "curves",
    [
        {"train/posterior_entropy", "train/retriever_entropy", "train/uniform_posteriors"},
        {"train/gain", "train/agreement"},
        {"index/age_fraction", "index/overlap_at_10"},
        {"val/ndcg_at_10", "val/recall_at_10", "val/recall_at_100", "val/mrr_at_10"},
        {f"perf/fraction_{part}" for part in PARTS if part != "prepare"},
    ],
)
def test_related_curves_share_a_chart(curves) -> None:
    assert any(set(chart) == curves for charts in LAYOUT.values() for chart in charts.values())
