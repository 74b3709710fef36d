"""A corpus is described before training. Run: pytest tests/commands/test_inspect.py"""

import json
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from matplotlib.image import imread
from omegaconf import OmegaConf

from dream.commands.estimate import StepClock, refreshes_of
from dream.commands.inspect import inspect
from dream.evaluation.corpus_report import languages, scripts
from dream.scorers.attention.heads import HeadFinder
from dream.utils.errors import ConfigError
from dream.utils.runtime import CONFIG_DIR


@pytest.fixture
def inspected(run_overrides, tmp_path):
    """Composes the config of dream-inspect for the tiny corpus."""

    def make(*overrides: str):
        folders = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}", f"paths.run={tmp_path}"]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            kept = [value for value in run_overrides if not ("scorer=scratch" in overrides and "scorer" in value)]
            return compose("inspect", [*kept, *folders, *overrides])

    return make


def test_the_report_has_counts_windows_candidates_and_an_estimate(inspected, tmp_path, capsys):
    report = inspect(inspected("windows=5", "probe_steps=2"))
    assert report["counts"]["documents"] == 80
    assert report["counts"]["windows"] == round(report["windows_per_document"]["mean"] * 80)
    assert list(report["scripts"]) == ["Latin"]
    assert len({window["window"] for window in report["examples"]}) == 5
    for window in report["examples"]:
        assert len(window["candidates"]) == 3
        assert all(found["document"] != window["document"] for found in window["candidates"])
    estimate = report["estimate"]
    expected = estimate["seconds_per_step"] * estimate["steps"] + estimate["refresh_seconds"]
    assert estimate["total_seconds"] == pytest.approx(expected, abs=0.2)
    assert estimate["memory_mb"] > 0
    assert estimate["refreshes"] == 3  # at steps 0, 3 and 6
    assert not (tmp_path / "data" / "loglik").exists()  # a second estimate scores as much as the first
    (folder,) = (tmp_path / "logs" / "inspections").iterdir()
    assert json.loads((folder / "report.json").read_text()) == report
    assert all(imread(folder / f"{name}.png").std() > 0 for name in ("document_lengths", "windows_per_document"))
    printed = capsys.readouterr().out
    assert "nothing is trained" in printed.splitlines()[0]
    assert "Estimate on cpu: " in printed
    assert not (tmp_path / "logs" / "latest").exists()


@pytest.mark.parametrize(
    ("every_n_steps", "steps", "refreshes"), [(125, 30, 2), (125, 500, 5), (125, 501, 6), (0, 30, 2)]
)
def test_the_corpus_is_embedded_at_the_start_every_n_steps_and_at_the_end(every_n_steps, steps, refreshes):
    assert refreshes_of(OmegaConf.create({"every_n_steps": every_n_steps}), steps) == refreshes
    assert refreshes_of(None, steps) == 0


def test_a_step_of_several_batches_is_timed_once():
    clock, trainer = StepClock(), SimpleNamespace(global_step=0)
    clock.on_train_start(trainer, None)
    for step in (0, 1, 1, 2):
        trainer.global_step = step
        clock.on_train_batch_end(trainer, SimpleNamespace(device=torch.device("cpu")))
    assert len(clock.seconds) == 2


def test_heads_are_not_found_for_the_estimate(inspected, monkeypatch):
    monkeypatch.setattr(HeadFinder, "open_or_find", None)
    asked = [
        "objective=attention",
        "candidates.scored_windows=2",
        "candidates.k=2",
        "scorer.scoring.max_passage_tokens=24",
    ]
    assert inspect(inspected("windows=1", "probe_steps=1", *asked))["estimate"]["seconds_per_step"] > 0


@pytest.mark.parametrize("override", ["windows=null", "probe_steps=null", "shown_candidates=0"])
def test_numbers_that_make_no_sense_are_refused(inspected, override):
    with pytest.raises(ConfigError, match=f"{override}: "):
        inspect(inspected(override))


def test_the_probe_chooses_the_precision_as_a_training_does(inspected):
    report = inspect(inspected("windows=1", "probe_steps=1", "trainer.precision=auto"))
    assert report["estimate"]["seconds_per_step"] > 0


def test_questions_need_not_be_written_for_the_estimate(inspected, tmp_path):
    asked = ["data.questions=12", "data.target=context", "scorer.scoring.max_passage_tokens=24", "candidates=bm25",
             "objective=joint_posterior", "objective.target=own_passage", "objective.continuation=0"]  # fmt: skip
    assert inspect(inspected("windows=1", "probe_steps=1", *asked))["estimate"]["seconds_per_step"] > 0
    assert not (tmp_path / "data" / "questions").exists()


def test_without_a_probe_nothing_is_built(inspected, capsys):
    assert "estimate" not in inspect(inspected("probe_steps=0", "windows=1"))
    with pytest.raises(ConfigError, match="windows=0: at least 1"):
        inspect(inspected("windows=0"))


def test_a_scratch_language_model_is_not_trained(inspected, tmp_path):
    small = ["scorer.vocabulary=400", "scorer.width=32", "scorer.layers=2", "scorer.training.max_steps=2",
             "scorer.scoring.compile=false"]  # fmt: skip
    report = inspect(inspected("scorer=scratch", *small, "probe_steps=1", "windows=1"))
    assert report["estimate"]["language_model_is_trained_first"]
    assert not (tmp_path / "data" / "scorers").exists()


def test_scripts_and_languages(monkeypatch):
    texts = ["The house is red, and nobody lives in it.", "Дом красный, и в нём никто не живёт.", "家は赤い。"]
    assert list(scripts(texts)) == ["Latin", "Cyrillic", "Han", "Japanese kana"]
    monkeypatch.setattr("dream.evaluation.corpus_report.find_spec", lambda name: None)
    assert languages(texts) is None


def test_languages_with_the_detector():
    pytest.importorskip("py3langid", reason="needs pip install 'dream-retrieval[languages]'")
    texts = ["The house is red, and nobody lives in it."] * 3 + ["Das Haus ist rot, und niemand wohnt darin."]
    assert languages(texts) == {"en": 0.75, "de": 0.25}
