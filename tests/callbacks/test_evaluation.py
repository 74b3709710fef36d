"""When the dev queries are ranked during training. Run: pytest tests/callbacks/test_evaluation.py"""

import csv

import pytest

from dream.callbacks.evaluation import RetrievalEvaluation
from dream.utils.errors import ConfigError


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 5]), (4, [4, 5]), (0, [5])])
def test_steps_of_the_evaluations(train_retriever, labels, tmp_path, every, steps) -> None:
    """Every n steps and at the end; the scores are logged only at these steps."""
    options = ["trainer.max_steps=5", "callbacks.index_refresh.every_n_steps=2", "callbacks.best_checkpoint=null"]
    _, trainer = train_retriever("run", *labels, *options, f"callbacks.evaluation.every_n_steps={every}")
    rows = [row for row in csv.DictReader((tmp_path / "run" / "csv" / "metrics.csv").open()) if row["val/ndcg_at_10"]]
    assert [int(row["step"]) for row in rows] == steps
    assert float(rows[-1]["val/ndcg_at_10"]) == pytest.approx(trainer.callback_metrics["val/ndcg_at_10"].item())


def test_an_index_would_be_stale(train_retriever, labels) -> None:
    options = ["callbacks.index_refresh.every_n_steps=2", "callbacks.evaluation.every_n_steps=3"]
    with pytest.raises(
        ConfigError, match=r"^callbacks\.evaluation\.every_n_steps=3: must be a multiple of callbacks\."
    ):
        train_retriever("run", *labels, *options)


def test_a_bad_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^callbacks\.evaluation\.every_n_steps=-1: "):
        RetrievalEvaluation("dev", -1)
