"""The progress bar in a log file.

Run: pytest tests/callbacks/test_progress.py
"""

import re

from dream.commands.train import train


def steps_shown(printed) -> set[int]:
    return {int(step) for step in re.findall(r"\b(\d+)/6 \[", printed.out + printed.err)}


def test_a_log_file_has_the_first_and_the_last_step_of_a_short_run(config, capsys):
    cfg = config("run")
    del cfg.trainer.enable_progress_bar
    cfg.callbacks.progress = {"_target_": "dream.callbacks.progress.TrainProgress"}
    train(cfg)
    assert steps_shown(capsys.readouterr()) == {0, 1, 6}


def test_a_slow_run_has_a_line_every_few_seconds(config, capsys, monkeypatch):
    monkeypatch.setattr("dream.callbacks.progress.SECONDS_BETWEEN_LINES", 0)
    cfg = config("run")
    del cfg.trainer.enable_progress_bar
    cfg.callbacks.progress = {"_target_": "dream.callbacks.progress.TrainProgress"}
    train(cfg)
    assert steps_shown(capsys.readouterr()) == set(range(7))
