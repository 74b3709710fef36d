"""Tuning in a study that resumes. Run: pytest tests/commands/test_tune.py"""

import json
import logging
import signal
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from matplotlib.image import imread

from dream.commands import tune as module
from dream.commands.app import how_to_resume
from dream.commands.tune import open_study, search_space, tune
from dream.utils.atomic_io import point_latest
from dream.utils.errors import ConfigError, DataError, NumericalError
from dream.utils.runtime import CONFIG_DIR
from dream.utils.signals import Interrupted

optuna = pytest.importorskip("optuna", reason="needs pip install 'dream-retrieval[tune]'")


@pytest.fixture
def tuned(run_overrides, tmp_path):
    """Composes the config of dream-tune for the tiny corpus."""

    def make(*overrides: str):
        folders = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}", f"paths.run={tmp_path}"]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose("tune", [*run_overrides, *folders, "trainer.max_steps=2", *overrides])

    return make


def test_a_study_tunes_on_dev_labels_and_resumes(tuned, tmp_path, capsys):
    first = tune(tuned("trials=2"))
    folder = tmp_path / "logs" / "default" / "tune"
    assert tune(tuned("trials=5")) >= first
    trials = json.loads((folder / "trials.json").read_text())
    assert len(trials) == 5
    assert trials[0]["value"] == max(trial["value"] for trial in trials)
    for trial in trials:
        summary = json.loads((folder / f"trial-{trial['trial']:03d}" / "summary.json").read_text())
        assert summary["trained/ndcg_at_10"] == trial["value"]
        assert 0.05 / 4 <= trial["values"]["objective.temperature"] <= 0.05 * 4
    assert len({trial["values"]["optimizer.optimizer.lr"] for trial in trials}) == 5
    assert [path.parent.name for path in folder.glob("*/encoder")] == [f"trial-{trials[0]['trial']:03d}"]
    assert all(imread(folder / f"{name}.png").std() > 0 for name in ("importance", "parallel", "slices"))
    printed = capsys.readouterr().out
    assert "5 trainings, 2 of them done" in printed
    assert "objective.temperature=" in printed


def test_an_interrupted_trial_is_done_again(tuned, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(trial, *_):
        trial.suggest_float("objective.temperature", 0.0125, 0.2, log=True)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_trial", killed)
        with pytest.raises(Killed):
            tune(tuned("trials=1"))
    cfg = tuned("trials=1")
    study = open_study(Path(cfg.study), cfg, search_space(cfg))
    failed, waiting = study.trials
    assert (failed.state.name, waiting.state.name) == ("FAIL", "WAITING")
    assert waiting.system_attrs["fixed_params"] == failed.params


def test_an_interrupted_study_continues_by_the_same_command(tuned, monkeypatch, tmp_path):
    def interrupted(*_):
        stop = Interrupted(signal.SIGINT)
        stop.checkpoint = tmp_path / "last.ckpt"
        raise stop

    monkeypatch.setattr(module, "run_trial", interrupted)
    with pytest.raises(Interrupted) as stop:
        tune(tuned("trials=1"))
    assert how_to_resume(stop.value, ["dream-tune", "trials=1"]).endswith("Resume with: dream-tune trials=1")


def test_the_latest_run_is_the_best_trial(tuned, monkeypatch, tmp_path):
    """Each trial moves logs/latest, and the encoder of the last trial may be deleted."""
    latest = tmp_path / "logs" / "latest"

    def trained(trial, cfg, space, folder):
        trial.suggest_float("objective.temperature", 0.0125, 0.2, log=True)
        run = folder / f"trial-{trial.number:03d}"
        (run / "encoder").mkdir(parents=True)
        trial.set_user_attr("folder", run.name)
        point_latest(latest, run)
        return (0.1, 0.3, 0.2)[trial.number]

    monkeypatch.setattr(module, "run_trial", trained)
    tune(tuned("trials=3"))
    assert latest.resolve().name == "trial-001"
    assert (latest / "encoder").exists()


def test_a_study_survives_trials_that_diverge(tuned, monkeypatch, capsys, caplog):
    monkeypatch.setattr(logging.getLogger("optuna"), "handlers", [caplog.handler])
    values = iter([None, 0.25, None])

    def diverging(trial, *_):
        trial.suggest_float("objective.temperature", 0.0125, 0.2, log=True)
        if (value := next(values)) is None:
            raise NumericalError("optimizer.optimizer.lr=9: the loss is nan; lower it")
        trial.set_user_attr("folder", f"trial-{trial.number:03d}")
        return value

    monkeypatch.setattr(module, "run_trial", diverging)
    assert tune(tuned("trials=3")) == 0.25
    printed = capsys.readouterr().out
    assert "trial 0 failed: optimizer.optimizer.lr=9: the loss is nan" in printed
    assert "→ failed; best so far 0.2500" in printed
    by_optuna = [record.message for record in caplog.records if record.name.startswith("optuna")]
    assert by_optuna == [], "Optuna would show a failed trial with its traceback"


def test_a_study_without_a_finished_trial_ends_in_one_line(tuned, monkeypatch):
    def diverging(trial, *_):
        raise NumericalError("optimizer.optimizer.lr=9: the loss is nan; lower it")

    monkeypatch.setattr(module, "run_trial", diverging)
    with pytest.raises(ConfigError, match="every training had inf or nan; give a space with lower learning rates"):
        tune(tuned("trials=2"))


def test_other_configs_and_wrong_spaces_are_refused(tuned):
    cfg = tuned()
    folder = Path(cfg.study)
    open_study(folder, cfg, search_space(cfg))
    other = tuned("seed=1")
    with pytest.raises(ConfigError, match="this study has another config, space or metric"):
        open_study(folder, other, search_space(other))
    for space, message in (
        ("[{low: 1, high: 2}]", "each entry needs key"),
        ("[{key: seed, factor: 2}]", "a factor above 1 of a number above 0"),
        ("[{key: objective.temperature, low: 2, high: 1}]", "low must be below high"),
        ("[{key: objective.temperature, low: 2}]", "each entry needs key"),
        ("[{key: no.such, factor: 2}]", "none of these keys"),
        ("[objective.temperature]", "space=objective.temperature: each entry needs key"),
        ("objective.temperature", "space=objective.temperature: must be a list"),
        ("[{key: objective.temperature, factor: two}]", "a factor above 1"),
        ("[{key: objective.temperature, low: 0.0, high: 1.0, log: true}]", "a logarithmic range needs low above 0"),
        ("[{key: objective.temperature, low: small, high: 1.0}]", "low and high must be numbers"),
        ("[{key: objective.temperature, choices: []}]", "choices must be a list of one value or more"),
        ("[{key: objective.temperature, choices: 1}]", "choices must be a list of one value or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            search_space(tuned(f"space={space}"))


def test_a_factor_of_a_whole_number_suggests_whole_numbers(tuned):
    cfg = tuned("space=[{key: candidates.k, factor: 1.6}]", "candidates.k=4")
    (entry,) = search_space(cfg)
    assert (entry["low"], entry["high"]) == (3, 6)
    study = optuna.create_study()
    suggested = [module._suggest(study.ask(), entry) for _ in range(20)]
    assert {type(value) for value in suggested} == {int}


def test_a_key_may_be_null_in_the_config(tuned):
    cfg = tuned("space=[{key: objective.null_similarity, choices: [null, 0.2]}]")
    assert search_space(cfg) == [{"key": "objective.null_similarity", "choices": [None, 0.2]}]
    assert module._shown(None) == "null", "None would be a text on the command line"


def test_without_labels_and_questions_there_is_no_metric(tuned):
    with pytest.raises(ConfigError, match=r"metric=trained/ndcg_at_10: not in summary\.json: the corpus needs labels"):
        tune(tuned("trials=1", "corpus.qrels=null"))


def test_a_new_study_beside_the_runs_of_an_older_one_reads_its_own_runs(tuned, tmp_path, monkeypatch):
    """study.db was deleted. And SLURM has restarted the job, which must not continue the runs of the older study."""
    cfg = tuned("trials=1", "seed=1")
    tune(cfg)
    folder = Path(cfg.study)
    (folder / "study.db").unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    value = tune(tuned("trials=1"))
    (trial,) = json.loads((folder / "trials.json").read_text())
    summary = json.loads((folder / "trial-000_2" / "summary.json").read_text())
    assert trial["value"] == value == summary["trained/ndcg_at_10"]
    assert (tmp_path / "logs" / "latest").resolve().name == "trial-000_2"
    assert (folder / "trial-000_2" / "encoder").exists()


def test_two_processes_do_not_work_on_one_study(tuned):
    cfg = tuned("trials=1")
    with module._locked(Path(cfg.study)), pytest.raises(DataError, match="another process is working on this study"):
        tune(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [("trials=null", "trials=null: at least 1 training"), ("ckpt=last", "ckpt=last: each training would continue")],
)
def test_values_that_no_study_can_have_are_refused(tuned, override, message):
    with pytest.raises(ConfigError, match=message):
        tune(tuned(override))


def test_a_missing_package_is_one_line(tuned, monkeypatch):
    monkeypatch.setattr("dream.utils.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package optuna: pip install 'dream-retrieval\[tune\]'"):
        tune(tuned())
