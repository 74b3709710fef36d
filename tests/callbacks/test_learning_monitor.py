"""A run that learns nothing logs a warning, once, with the remedy. Run: pytest tests/callbacks/test_learning_monitor.py

The tiny language model is random: it prefers no candidate at the default objective.lm_temperature, and its gain is
0.006 nats per target token. With HEALTHY and HEALTHY_LIMITS no warning applies.
"""

import io
import json
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tqdm import tqdm

from dream.callbacks import learning_monitor
from dream.callbacks.learning_monitor import LearningMonitor, Thresholds, effective_rank, mean_cosine, popular_share
from dream.commands.train import train
from dream.objectives.base import LossInputs, LossOutput, Objective

HEALTHY = ["objective.lm_temperature=0.03"]
HEALTHY_LIMITS = {"gain": 0.001}


def monitor_of(trainer: Any) -> LearningMonitor:
    return next(callback for callback in trainer.callbacks if isinstance(callback, LearningMonitor))


def kinds(trainer: Any) -> list[str]:
    return [line.split()[0] for line in monitor_of(trainer).warnings.values()]


def warned(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


def test_a_healthy_run_warns_of_nothing(train_retriever, capsys) -> None:
    _, trainer = train_retriever("run", *HEALTHY, limits=HEALTHY_LIMITS)
    assert kinds(trainer) == warned(capsys) == []
    assert 1 < trainer.callback_metrics["index/effective_rank"] < 48
    assert {"train/query_cosine", "train/popular_share", "index/passage_cosine"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize(
    ("overrides", "limits", "kind", "remedy"),
    [
        (["objective.lm_temperature=1e6"], {}, "uniform_posterior", "lower objective.lm_temperature=1000000.0"),
        (["objective.lm_temperature=1e-6"], {}, "one_hot_posterior", "raise objective.lm_temperature=1e-06"),
        (["scorer.scoring.max_passage_tokens=1"], {"gain": 0.01}, "no_gain", "take a better scorer"),
        (["candidates=bm25", "data.limit_windows=8"], {"popular_share": 0.02}, "popular_candidates",
         "choose candidates=random"),
        ([], {"spread_of_start": 0.999, "least_spread": 2}, "collapsed_query_embeddings",
         "lower optimizer.optimizer.lr=0.005"),
        ([], {"least_rank": 48}, "low_rank_embeddings", "lower optimizer.optimizer.lr=0.005"),
    ],
)  # fmt: skip
def test_each_case_warns_once_with_its_remedy(train_retriever, capsys, overrides, limits, kind, remedy) -> None:
    _, trainer = train_retriever("run", *HEALTHY, *overrides, limits=HEALTHY_LIMITS | limits)
    lines = [line for line in warned(capsys) if line.startswith(f"warning: {kind} at step ")]
    assert len(lines) == 1
    assert remedy in lines[0]
    assert kinds(trainer).count(kind) == 1


class PullTogether(Objective):
    """Pulls all contexts towards all continuations and pushes none apart, as a contrastive loss would."""

    needs_continuation = True
    temperature = 1.0

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.continuation_sim_BA is not None
        return LossOutput(1 - inputs.continuation_sim_BA.mean())


def test_an_encoder_that_collapses_is_reported(train_retriever, capsys) -> None:
    """The default thresholds, and a loss that drives all embeddings into one direction."""

    def pull_together(module: Any) -> None:
        module.objective = PullTogether()

    options = ["trainer.max_steps=60", "callbacks.index_refresh.every_n_steps=20", "optimizer.optimizer.lr=0.03"]
    _, trainer = train_retriever("run", "objective=info_nce", *options, disturb=pull_together)
    assert sorted(kinds(trainer)) == sorted(line.split()[1] for line in warned(capsys))
    assert {"collapsed_query_embeddings", "collapsed_passage_embeddings"} <= set(kinds(trainer))
    assert trainer.callback_metrics["index/passage_cosine"] > 0.9
    assert len(set(kinds(trainer))) == len(kinds(trainer))


def test_without_a_posterior_only_embeddings_are_judged(train_retriever) -> None:
    _, trainer = train_retriever("run", "objective=info_nce")
    assert kinds(trainer) == []
    assert "train/query_cosine" in trainer.callback_metrics
    assert "train/popular_share" not in trainer.callback_metrics


class CountingCandidates(Callback):
    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.times.update(outputs["candidate_ids_SK"].flatten().tolist())


def test_the_logged_popularity_is_that_of_the_run(train_retriever) -> None:
    """12 steps of 3 windows with 4 candidates: 144, fewer than the 600 passages, so 1 % of them is the top 2."""
    counting = CountingCandidates()
    _, trainer = train_retriever("run", "candidates=bm25", "data.limit_windows=24", callbacks=(counting,))
    top = sum(times for _, times in counting.times.most_common(2))
    assert counting.times.total() == 144
    assert trainer.callback_metrics["train/popular_share"].item() == pytest.approx(top / 144)


def test_popularity_by_hand() -> None:
    """Of 300 passages one was proposed 30 times, one 20, fifty once: 1 % of 100 candidates are 1 passage, 30 %.

    With 500 candidates (the fifty 9 times), 1 % of 300 passages are 3: 30 + 20 + 9 of 500.
    """
    proposed_N = torch.zeros(300, dtype=torch.int32)
    proposed_N[7], proposed_N[9], proposed_N[100:150] = 30, 20, 1
    assert popular_share(proposed_N, 0.01) == pytest.approx(0.30)
    proposed_N[100:150] = 9
    assert popular_share(proposed_N, 0.01) == pytest.approx(59 / 500)


def test_mean_cosine_by_pairs() -> None:
    embedding_RD = torch.nn.functional.normalize(
        torch.randn(30, 5, generator=torch.Generator().manual_seed(0)) + 0.5, dim=1
    )
    pairs = [float(embedding_RD[i] @ embedding_RD[j]) for i in range(30) for j in range(30) if i != j]
    assert mean_cosine(embedding_RD).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_effective_rank_by_hand() -> None:
    """Equal singular values count fully; of shares 3/4 and 1/4 the entropy is 0.5623 nats, and exp of it 1.7548."""
    assert effective_rank(torch.eye(6)) == pytest.approx(6, rel=1e-5)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(1.7548, rel=1e-4)


def test_a_resumed_run_continues_counting_and_does_not_warn_again(train_retriever, tmp_path, capsys) -> None:
    every = ModelCheckpoint(tmp_path / "run" / "every", "{step}", every_n_train_steps=2, save_top_k=-1)
    _, trainer = train_retriever("run", callbacks=(every,))
    whole = monitor_of(trainer)
    assert {line.split()[1] for line in warned(capsys)} == {"uniform_posterior", "no_gain"}
    for step, again in ((2, 2), (6, 0)):  # running means over 4 steps: warnings came at step 4
        _, trainer = train_retriever("run", ckpt=tmp_path / "run" / "every" / f"step={step}.ckpt")
        resumed = monitor_of(trainer)
        assert len(warned(capsys)) == again
        ours, theirs = resumed.state_dict(), whole.state_dict()
        counts = [state.pop("proposed") for state in (ours, theirs)]
        assert ours == theirs
        assert all(
            torch.equal(torch.as_tensor(counts[0][name]), torch.as_tensor(counts[1][name])) for name in counts[0]
        )


def test_a_run_that_starts_from_another_runs_checkpoint_warns_of_its_own_steps(train_retriever, tmp_path) -> None:
    _, other = train_retriever("other", "trainer.max_steps=4")
    assert kinds(other) == ["uniform_posterior", "no_gain"]
    checkpoint = tmp_path / "other" / "checkpoints" / "last.ckpt"
    _, trainer = train_retriever("run", *HEALTHY, "trainer.max_steps=6", limits=HEALTHY_LIMITS, ckpt=checkpoint)
    state = monitor_of(trainer).state_dict()
    assert state["warnings"] == {}
    assert {name: len(values) for name, values in state["recent"].items()} == dict.fromkeys(
        ("query_cosine", "entropy", "gain"), 2
    )
    assert state["proposed"]["times"].sum() == 2 * 3 * 4  # steps, scored windows, candidates


def test_a_mean_is_judged_only_over_all_its_batches(train_retriever, tmp_path) -> None:
    """info_nce has only the mean of the cosine. The posterior that follows it has 2 of the 4 batches."""
    train_retriever("run", "objective=info_nce", "trainer.max_steps=4")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    _, trainer = train_retriever("run", "trainer.max_steps=6", ckpt=checkpoint)
    assert {name: len(values) for name, values in monitor_of(trainer).state_dict()["recent"].items()} == {
        "query_cosine": 4,
        "entropy": 2,
        "gain": 2,
    }
    assert kinds(trainer) == []


def test_the_summary_lists_the_warnings(tiny_config, tmp_path, monkeypatch) -> None:
    limits = {"steps": 4}
    monkeypatch.setattr(learning_monitor, "Thresholds", lambda: Thresholds(**limits))
    train(tiny_config("run"))
    lines = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert [line.split()[0] for line in lines] == ["uniform_posterior", "no_gain"]
    limits |= HEALTHY_LIMITS
    train(tiny_config("healthy", *HEALTHY))
    assert json.loads((tmp_path / "healthy" / "summary.json").read_text())["warnings"] == []


def test_a_warning_has_its_own_line_next_to_a_progress_bar(train_retriever, monkeypatch) -> None:
    """A terminal shows only the part of a line after its last carriage return."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(total=3, file=screen) as bar:
        bar.update()
        train_retriever("run")
    shown = [line.split("\r")[-1] for line in screen.getvalue().splitlines()]
    assert len([line for line in shown if line.startswith("warning: uniform_posterior at step 4: ")]) == 1
