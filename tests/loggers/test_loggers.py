"""Every logger gets the config and the final figures. Run: pytest tests/loggers/test_loggers.py"""

import csv
import importlib.util

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tests.callbacks.conftest import CONSTANT_RATE

from dream import build
from dream.callbacks.hyperparameters import flat
from dream.commands.train import train
from dream.utils import errors
from dream.utils.errors import ConfigError

SHORT = ["objective=info_nce", "callbacks.candidate_panels=null", "trainer.max_steps=3", CONSTANT_RATE]


def hparams_of(folder) -> dict:
    """What the tab HPARAMS reads: the values of the session that started."""
    tags = EventAccumulator(str(folder)).Reload().SummaryMetadata("_hparams_/session_start_info")
    data = HParamsPluginData.FromString(tags.plugin_data.content)
    return dict(data.session_start_info.hparams.items())


def test_several_at_once(config, tmp_path):
    train(config("both", *SHORT, "logger=[tensorboard,csv]", "seed=7"))
    run = tmp_path / "logs/both"
    rows = list(csv.DictReader((run / "csv/metrics.csv").open()))
    final = {name: float(row[name]) for row in rows for name in row if name.startswith("final/") and row[name]}
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"final/train/loss", "final/trained/ndcg_at_10", "final/bm25/recall_at_100"} <= set(final)
    for name, value in final.items():
        assert [event.value for event in events.Scalars(name)][-1] == pytest.approx(value, abs=1e-5)
    assert hparams_of(run / "tensorboard")["objective.temperature"].number_value > 0
    params = yaml.safe_load((run / "csv/hparams.yaml").read_text())
    assert params["seed"] == 7
    assert params["encoder._target_"] == "dream.encoders.static.StaticEncoder"


def test_secrets_are_not_logged(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "a-very-secret-value")
    train(config("secret", *SHORT, "logger=csv", "+note=a-very-secret-value"))
    assert "very-secret" not in (tmp_path / "logs/secret/csv/hparams.yaml").read_text()


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(config, package, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"logger={package}: needs the package .*'dream-retrieval\[{package}\]'"):
        build._loggers(config("run", f"logger={package}"))


def test_wandb_offline(config, tmp_path):
    pytest.importorskip("wandb")
    train(config("offline", *SHORT, "logger=wandb"))
    assert list((tmp_path / "logs/offline/wandb").glob("offline-run-*/*.wandb"))


def test_mlflow_in_sqlite(config, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    if not importlib.util.find_spec("sqlalchemy"):
        pytest.skip("needs all of mlflow")
    train(config("tracked", *SHORT, "logger=[csv,mlflow]", "name=tiny"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'logs/mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.data.params["trainer.max_steps"] == "3"
    assert 0 <= run.data.metrics["final/trained/ndcg_at_10"] <= 1


def test_flat_keys():
    assert flat({"a": {"b": [1, {"c": 2}], "d": None}, "e": True}) == {"a.b": "[1, {'c': 2}]", "a.d": "None", "e": True}


@pytest.mark.parametrize("killed", [False, True])
def test_a_resumed_run_keeps_its_rows(config, tmp_path, killed):
    """4 steps and then 2 more: the same values at the same steps as without the interruption, each once.

    Also if a first attempt to resume was killed while it wrote the earlier rows.
    """

    def values(run: str) -> list[tuple[str, int, str]]:
        table = csv.DictReader((tmp_path / "logs" / run / "csv/metrics.csv").open())
        names = ("train/loss", "val/ndcg_at_10", "index/age_steps")
        return sorted((name, int(row["step"]), row[name]) for row in table for name in names if row.get(name))

    train(config("whole", *SHORT, "logger=csv", "trainer.max_steps=6"))
    train(config("stopped", *SHORT, "logger=csv", "trainer.max_steps=4"))
    if killed:
        file = tmp_path / "logs/stopped/csv/metrics.csv"
        file.rename(f"{file}.earlier")
        file.with_name("metrics.csv.tmp").write_text("half a row")
    train(config("stopped", *SHORT, "logger=csv", "trainer.max_steps=6", "ckpt=last"))
    assert values("stopped") == values("whole")
