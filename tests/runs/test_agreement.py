"""What a resumed run must have in common with the run before; a refusal changes nothing.

Run: pytest tests/runs/test_agreement.py
"""

import json
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from dream.commands.train import train
from dream.runs.agreement import changed_keys
from dream.utils.errors import ConfigError, DataError
from dream.utils.lr_schedule import warmup_then_linear
from dream.utils.optimizer_settings import OptimizerSettings


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def finished(config, tmp_path) -> Path:
    train(config("run"))
    return tmp_path / "logs" / "run"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.temperature=0.2", "objective.temperature=0.2: the run to resume was started with 0.05"),
        ("seed=1", "seed=1: the run to resume was started with 0"),
        ("encoder.random_width=16", "encoder.random_width=16: the run to resume was started with 256"),
        ("corpus.language=null", "corpus.language=null: the run to resume was started with english"),
        ("data.batch_size=8", "data.batch_size=8: the run to resume was started with 4"),
        ("callbacks.index_refresh.every_n_steps=-1", "callbacks.index_refresh.every_n_steps"),
        ("callbacks.evaluation.every_n_steps=2", "must be a multiple of callbacks.index_refresh.every_n_steps=3"),
        ("index.factory=IDMap", "leave IDMap out"),
    ],
)
def test_a_refused_resume_names_the_key_and_changes_no_byte(config, finished, override, message):
    before = bytes_of(finished)
    with pytest.raises((ConfigError, InstantiationException), match=message):
        train(config("other", "ckpt=last", "trainer.max_steps=8", override))
    assert bytes_of(finished) == before


@pytest.mark.parametrize("refused", ["objective.temperature=-1", "candidates.k=5000", "corpus.id_field=name"])
@pytest.mark.parametrize("first", [True, False])
def test_a_new_run_that_is_refused_leaves_no_folder_and_latest_as_it_was(config, tmp_path, refused, first):
    if not first:
        train(config("run"))
    before = sorted(path for path in (tmp_path / "logs").rglob("*"))
    with pytest.raises(Exception, match=refused.partition("=")[0]):
        train(config("refused", refused))
    assert sorted(path for path in (tmp_path / "logs").rglob("*")) == before
    assert first or (tmp_path / "logs" / "latest").resolve() == tmp_path / "logs" / "run"


def test_a_folder_with_somebody_elses_files_is_never_removed(config, tmp_path):
    mine = tmp_path / "logs" / "mine" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("thesis")
    with pytest.raises(InstantiationException, match="objective.temperature=-1"):
        train(config("mine", "objective.temperature=-1"))
    assert mine.read_text() == "thesis"


def test_environment_variables_and_secrets_are_compared_as_they_are_saved(monkeypatch):
    monkeypatch.setenv("DTYPE", "float32")
    now = OmegaConf.create({"encoder": {"dtype": "${oc.env:DTYPE}", "hub_token": "hf_0123456789"}})
    assert changed_keys({"encoder": {"dtype": "${oc.env:DTYPE}", "hub_token": "***"}}, now) == {}


@pytest.mark.parametrize("change", ["grown", "another"])
def test_a_corpus_that_has_changed_is_refused_before_anything_of_the_run_changes(
    config, finished, corpus_folder, tmp_path, change
):
    before = bytes_of(finished)
    other = tmp_path / "other.jsonl"
    text = (corpus_folder / "corpus.jsonl").read_text()
    more = json.dumps({"_id": "new", "title": "", "text": "words " * 40}) + "\n"
    other.write_text(text + more if change == "grown" else text.replace("Document", "Text").replace("a", "e"))
    with pytest.raises(DataError, match="ckpt: the checkpoint was made with another store"):
        train(config("other", "ckpt=last", "trainer.max_steps=8", f"corpus.path={other}"))
    assert bytes_of(finished) == before


def test_a_checkpoint_of_another_encoder_is_refused_before_the_scorer_is_loaded(config, finished, monkeypatch):
    from dream.scorers.hf import HFScorer

    monkeypatch.setattr(HFScorer, "load", lambda *_: pytest.fail("the scorer was loaded"))
    checkpoint = finished / "checkpoints" / "last.ckpt"
    with pytest.raises(DataError, match="another store"):
        train(config("other", f"ckpt={checkpoint}", "data.passage_tokens=20"))


def test_keys_that_only_decide_how_it_is_computed_may_change(config, finished, tmp_path):
    free = ["trainer.max_steps=8", "data.workers=2", "scorer.scoring.tokens_per_forward=128",
            "scorer.cache_megabytes=0", "callbacks.candidate_panels=null", "optimizer.optimizer.lr=0.01"]  # fmt: skip
    train(config("unused", "ckpt=last", *free))
    assert json.loads((finished / "summary.json").read_text())["steps"] == 8
    assert not (tmp_path / "logs" / "unused").exists()


def test_changed_keys_are_those_below_the_fixed_ones():
    before = {"seed": 0, "encoder": {"name": "a", "max_tokens": 8}, "trainer": {"max_steps": 1}}
    now = OmegaConf.create({"seed": 0, "encoder": {"name": "b", "max_tokens": 8, "pooling": "cls"}, "trainer": {}})
    assert changed_keys(before, now) == {"encoder.name": ("a", "b"), "encoder.pooling": (None, "cls")}


@pytest.mark.parametrize("where", ["ckpt=last", "ckpt=FILE"])
def test_learning_rate_and_weight_decay_of_the_config_are_used_after_a_resume(
    config, finished, tmp_path, where, capsys
):
    where = where.replace("FILE", str(finished / "checkpoints" / "last.ckpt"))
    overrides = ["optimizer.optimizer.lr=0.0001", "optimizer.optimizer.weight_decay=0.1", "trainer.max_steps=8",
                 "optimizer.schedule.warmup_steps=4"]  # fmt: skip
    train(config("again", where, *overrides))
    assert "Resuming with other optimizer settings than before: weight_decay 0.0 → 0.1" in capsys.readouterr().out
    run = (tmp_path / "logs" / "latest").resolve()
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["initial_lr"]) == (0.1, 0.0001)
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [0.0001]
    assert 0 <= group["lr"] <= 0.0001


def test_a_run_that_is_trained_further_has_the_learning_rate_of_its_new_length():
    """Its first run ended with 0."""

    def make(max_steps: int):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1.0)
        return optimizer, warmup_then_linear(optimizer, max_steps, warmup_steps=2)

    def train(optimizer, schedule, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    first, first_schedule = make(10)
    train(first, first_schedule, 10)
    assert first.param_groups[0]["lr"] == 0
    optimizer, schedule = make(20)
    settings = OptimizerSettings(optimizer, schedule)
    optimizer.load_state_dict(first.state_dict())
    schedule.load_state_dict(first_schedule.state_dict())
    settings.apply()
    assert train(optimizer, schedule, 10) == train(*make(20), 20)[10:]


def test_other_heads_and_other_learning_rates_are_changes():
    before = {"objective": {"finder": {"rows": "window"}}, "optimizer": {"lr": 1.0}, "data": {"workers": 1}}
    now = OmegaConf.create(
        {"objective": {"finder": {"rows": "context"}}, "optimizer": {"lr": 2.0}, "data": {"workers": 2}}
    )
    assert changed_keys(before, now) == {"objective.finder.rows": ("window", "context")}
    assert changed_keys(before, now, ("optimizer",)) == {"optimizer.lr": (1.0, 2.0)}


def test_settings_of_a_schedule_with_state_follow_the_config_and_its_step_does_not():
    """A checkpoint with gamma 0.5 after 3 steps, resumed with gamma 0.1: step 3 stays, gamma is the new one."""

    def make(gamma: float, lr: float):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=gamma)

    old_optimizer, old_schedule = make(0.5, 1.0)
    for _ in range(3):
        old_optimizer.step()
        old_schedule.step()
    optimizer, schedule = make(0.1, 0.2)
    settings = OptimizerSettings(optimizer, schedule)
    optimizer.load_state_dict(old_optimizer.state_dict())
    schedule.load_state_dict(old_schedule.state_dict())
    assert schedule.gamma == 0.5
    settings.apply()
    assert (schedule.gamma, schedule.last_epoch, schedule.base_lrs) == (0.1, 3, [0.2])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * 0.5)  # what has decayed by step 3 has decayed
