"""How many steps a run has. Run: pytest tests/runs/test_steps.py"""

import json

import pytest
from omegaconf import OmegaConf, open_dict

from dream.build import build_text
from dream.commands.train import train
from dream.runs.steps import MOST_STEPS, most_steps, steps_of
from dream.utils.errors import ConfigError


class Windows:
    """What `steps_of` reads of a data module."""

    def __init__(self, batch_size: int, distinct: int) -> None:
        self.batch_size, self.distinct = batch_size, distinct


@pytest.mark.parametrize(
    ("windows", "batch_size", "batches", "steps"),
    [(5_011, 256, 1, 30), (5_011, 128, 1, 59), (5_011, 128, 2, 30), (1, 256, 1, 1), (10**6, 256, 1, MOST_STEPS)],
)
def test_a_small_corpus_has_few_steps(windows, batch_size, batches, steps):
    trainer = OmegaConf.create({"max_steps": "auto", "accumulate_grad_batches": batches})
    assert steps_of(trainer, Windows(batch_size, windows)) == steps
    assert most_steps(trainer) == MOST_STEPS


def test_a_number_is_taken_as_it_is():
    trainer = OmegaConf.create({"max_steps": 7})
    assert steps_of(trainer, Windows(256, 10**6)) == most_steps(trainer) == 7


def test_a_run_with_automatic_steps_ends_and_can_be_trained_further(config, tmp_path, capsys):
    overrides = ("trainer.max_steps=auto", "data.batch_size=32", "candidates.scored_windows=0")
    cfg = config("run", *overrides)
    wanted = steps_of(cfg.trainer, build_text(cfg).data)
    assert 1 < wanted < MOST_STEPS
    train(cfg)
    printed = capsys.readouterr().out
    assert f"at most {MOST_STEPS} steps of 32 windows" in printed
    assert f"{wanted} steps: 1.5 passes over the corpus's" in printed
    summary = json.loads((tmp_path / "logs/run/summary.json").read_text())
    assert summary["steps"] == wanted
    train(config("run", *overrides, "ckpt=last"))
    assert f"This run is finished: its {wanted} steps are done" in capsys.readouterr().out
    train(config("run", "trainer.max_steps=50", *overrides[1:], "ckpt=last"))  # trains it further
    assert json.loads((tmp_path / "logs/run/summary.json").read_text())["steps"] == 50


def test_a_run_with_automatic_steps_resumes_bitwise(config, tmp_path):
    overrides = ("trainer.max_steps=auto", "data.batch_size=32", "candidates.scored_windows=0")
    cfg = config("whole", *overrides)
    with open_dict(cfg):
        cfg.callbacks.every = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "every_n_train_steps": 4,
                               "dirpath": f"{tmp_path}/every", "filename": "{step}", "save_top_k": -1}  # fmt: skip
    train(cfg)
    train(config("resumed", *overrides, f"ckpt='{tmp_path / 'every/step=4.ckpt'}'"))
    whole, resumed = (json.loads((tmp_path / f"logs/{run}/summary.json").read_text()) for run in ("whole", "resumed"))
    assert whole["steps"] == resumed["steps"] > 4
    assert whole["train/loss"] == resumed["train/loss"]
    assert whole["trained/ndcg_at_10"] == resumed["trained/ndcg_at_10"]


def test_other_values_are_refused(config):
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=many: a number of steps, at least 1, or auto"):
        train(config("run", "trainer.max_steps=many"))
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=-1: a number of steps, at least 1, or auto"):
        train(config("run", "trainer.max_steps=-1"))
