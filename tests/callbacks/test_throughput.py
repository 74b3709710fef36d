"""How the time of a step is measured. Run: pytest tests/callbacks/test_throughput.py"""

import csv
import json
import time
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from dream.callbacks.learning_monitor import LearningMonitor
from dream.commands import train as command
from dream.utils.timing import PARTS, fractions

OF_A_STEP = [part for part in PARTS if part != "prepare"]

PAUSE = 0.2  # seconds; the rest of a tiny step takes a few milliseconds


def sleep_before(function):
    def slow(*arguments, **options):
        time.sleep(PAUSE)
        return function(*arguments, **options)

    return slow


def logged(run) -> list[dict[str, float]]:
    """The perf/* metrics of each logged step."""
    rows = [row for row in csv.DictReader((run / "csv" / "metrics.csv").open()) if row.get("perf/fraction_encode")]
    return [{name: float(value) for name, value in row.items() if name.startswith("perf/") and value} for row in rows]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_shares_of_wall_time(train_retriever, tmp_path, accumulate) -> None:
    began = time.perf_counter()
    overrides = [f"trainer.accumulate_grad_batches={accumulate}", "trainer.log_every_n_steps=2"]
    train_retriever("run", *overrides)
    seconds = time.perf_counter() - began
    rows = logged(tmp_path / "run")
    assert len(rows) == 6
    for row in rows:
        shares = [row[f"perf/fraction_{part}"] for part in OF_A_STEP]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        # 2 steps of `accumulate` batches of 8 windows were trained within the whole time.
        assert row["perf/windows_per_second"] > 2 * accumulate * 8 / seconds
    assert sum(row["perf/fraction_score"] > 0 for row in rows) == 6
    assert sum(row["perf/fraction_refresh"] > 0 for row in rows) == 2  # after steps 5 and 10


def test_shares_of_the_whole_run_are_in_its_summary_and_in_a_table(config, capsys) -> None:
    began = time.perf_counter()
    command.train(config("run"))
    seconds = time.perf_counter() - began
    summary = json.loads((Path(config("run").paths.run) / "summary.json").read_text())
    shares = {part: summary[f"perf/fraction_{part}"] for part in PARTS}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
    assert all(share >= 0 for share in shares.values())
    assert shares["prepare"] * summary["wall_seconds"] <= seconds
    assert min(shares[part] for part in ("prepare", "encode", "score", "optimizer", "refresh", "evaluate")) > 0
    table = capsys.readouterr().out.split("Where the")[1]
    largest = max(shares, key=shares.__getitem__)
    assert largest in table.splitlines()[4]


def test_other_is_what_no_part_measures() -> None:
    assert fractions({"encode": 2.0, "score": 1.0}, 4.0)["other"] == 0.25
    assert fractions({"encode": 2.0, "other": 1.0}, 4.0)["other"] == 0.5


def test_windows_are_counted_once_with_accumulation(train_retriever, tmp_path) -> None:
    """Each batch of 8 windows takes at least PAUSE: between two logs there are 2 batches, or 4 with accumulation."""

    def slow_down(module) -> None:
        module.objective = sleep_before(module.objective)

    for accumulate in (1, 2):
        run = f"run{accumulate}"
        overrides = [f"trainer.accumulate_grad_batches={accumulate}", "trainer.log_every_n_steps=2"]
        train_retriever(run, *overrides, "trainer.max_steps=4", "objective=info_nce", disturb=attributes(slow_down))
        for row in logged(tmp_path / run):
            assert 0.1 * 8 / PAUSE < row["perf/windows_per_second"] <= 8 / PAUSE


def attributes(disturb):
    """Replace the objective by a function with the same attributes."""

    def run(module) -> None:
        objective = module.objective
        disturb(module)
        for name in ("needs_candidates", "needs_continuation", "needs_untrained", "temperature", "lm_temperature"):
            setattr(module.objective, name, getattr(objective, name))

    return run


SLOW = {
    "data": lambda module: setattr(module, "on_before_batch_transfer", sleep_before(module.on_before_batch_transfer)),
    "encode": lambda module: setattr(module.encoder, "forward", sleep_before(module.encoder.forward)),
    "propose": lambda module: setattr(module.candidates, "propose", sleep_before(module.candidates.propose)),
    "score": lambda module: setattr(module.scorer, "loglik", sleep_before(module.scorer.loglik)),
    "backward": attributes(lambda module: setattr(module, "objective", sleep_before(module.objective))),
    "optimizer": lambda module: setattr(
        module, "configure_gradient_clipping", sleep_before(module.configure_gradient_clipping)
    ),
}


def seconds_of(part: str, row: dict[str, float]) -> float:
    """Between two logs are 2 steps of 8 windows."""
    return row[f"perf/fraction_{part}"] * 2 * 8 / row["perf/windows_per_second"]


@pytest.mark.parametrize("part", SLOW)
def test_time_counts_for_its_part(train_retriever, tmp_path, part) -> None:
    options = ["trainer.max_steps=4", "trainer.log_every_n_steps=2", "callbacks.index_refresh.every_n_steps=0"]
    train_retriever("run", *options, disturb=SLOW[part])
    for row in logged(tmp_path / "run"):
        assert max(OF_A_STEP, key=lambda other: row[f"perf/fraction_{other}"]) == part
        assert seconds_of(part, row) >= 2 * PAUSE


@pytest.mark.parametrize(("slow", "part"), [(ModelCheckpoint, "checkpoint"), (LearningMonitor, "other")])
def test_time_of_callbacks_is_not_waiting_for_data(train_retriever, tmp_path, monkeypatch, slow, part) -> None:
    monkeypatch.setattr(slow, "on_train_batch_end", sleep_before(slow.on_train_batch_end))
    train_retriever("run", "trainer.max_steps=4", "trainer.log_every_n_steps=2")
    rows = logged(tmp_path / "run")
    assert all(seconds_of("data", row) < PAUSE for row in rows)
    assert all(seconds_of(part, row) >= PAUSE for row in rows)


def test_cached_pairs(train_retriever, tmp_path) -> None:
    """The same 8 windows with the same BM25 candidates in each step: from the second step on, all are known."""
    same = ["data.limit_windows=8", "candidates=bm25", "candidates.scored_windows=null", "trainer.max_steps=3"]
    train_retriever("run", *same)
    assert [row["perf/cache_hit_rate"] for row in logged(tmp_path / "run")] == [0, 1, 1]
