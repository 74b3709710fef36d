"""A run that learns nothing says so, once, with the remedy. Run: pytest tests/callbacks/test_guards.py

The tiny language model is random: it prefers no candidate at the default objective.lm_temperature, and its gain is
0.006 nats a target token. HEALTHY makes of it one that has preferences.
"""

import io
import json
import math
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tqdm import tqdm

from dream.callbacks.learning_monitor import LearningMonitor, effective_rank, mean_cosine, popular_share, warnings_of
from dream.commands.train import train
from dream.objectives.base import LossInputs, Objective
from dream.utils.errors import ConfigError

HEALTHY = ["objective.lm_temperature=0.03", "callbacks.learning_monitor.gain=0.001"]


def kinds(trainer: Any) -> list[str]:
    return [line.split()[0] for line in warnings_of(trainer)]


def said(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


def test_a_healthy_run_warns_of_nothing(train_retriever, capsys) -> None:
    _, trainer = train_retriever("run", *HEALTHY)
    assert warnings_of(trainer) == said(capsys) == []
    assert 1 < trainer.callback_metrics["index/effective_rank"] < 48
    assert {"train/query_cosine", "train/popular_share", "index/passage_cosine"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize(
    ("overrides", "kind", "remedy"),
    [
        (["objective.lm_temperature=1e6"], "uniform_posterior", "lower objective.lm_temperature=1000000.0"),
        (["objective.lm_temperature=1e-6"], "one_hot_posterior", "raise objective.lm_temperature=1e-06"),
        (["scorer.scoring.max_passage_tokens=1", "callbacks.learning_monitor.gain=0.01"], "no_gain", "take a better scorer"),
        (["callbacks.learning_monitor.popular_share=0.02", "candidates=bm25", "data.limit_windows=8"], "popular_candidates",
         "raise the share of random candidates"),
        (["callbacks.learning_monitor.spread_of_start=0.999", "callbacks.learning_monitor.least_spread=2"], "collapsed_query_embeddings",
         "lower optimizer.optimizer.lr=0.005"),
        (["callbacks.learning_monitor.least_rank=48"], "low_rank_embeddings", "lower optimizer.optimizer.lr=0.005"),
    ],
)  # fmt: skip
def test_each_case_warns_once_with_its_remedy(train_retriever, capsys, overrides, kind, remedy) -> None:
    _, trainer = train_retriever("run", *HEALTHY, *overrides)
    lines = [line for line in said(capsys) if line.startswith(f"warning: {kind} at step ")]
    assert len(lines) == 1
    assert remedy in lines[0]
    assert kinds(trainer).count(kind) == 1


class PullTogether(Objective):
    """All contexts towards all continuations, nothing apart: what contrastive losses exist to prevent."""

    needs_continuation = True
    temperature = 1.0

    def __call__(self, evidence: LossInputs) -> torch.Tensor:
        assert evidence.continuation_sim_BB is not None
        return 1 - evidence.continuation_sim_BB.mean()


def test_an_encoder_that_collapses_is_told(train_retriever, capsys) -> None:
    """The default thresholds, and a loss that really drives every embedding into one direction."""

    def pull_together(module: Any) -> None:
        module.objective = PullTogether()

    options = ["trainer.max_steps=60", "callbacks.index_refresh.every_n_steps=20", "optimizer.optimizer.lr=0.03"]
    _, trainer = train_retriever("run", "objective=info_nce", *options, disturb=pull_together)
    assert sorted(kinds(trainer)) == sorted(line.split()[1] for line in said(capsys))
    assert {"collapsed_query_embeddings", "collapsed_passage_embeddings"} <= set(kinds(trainer))
    assert trainer.callback_metrics["index/passage_cosine"] > 0.9
    assert len(set(kinds(trainer))) == len(kinds(trainer))


def test_an_objective_without_a_posterior_leaves_its_guards_silent(train_retriever) -> None:
    _, trainer = train_retriever("run", "objective=info_nce")
    assert warnings_of(trainer) == []
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

    def count(module: Any) -> None:
        module.on_train_batch_end, original = (
            lambda outputs, *rest: (counting.on_train_batch_end(None, None, outputs), original(outputs, *rest)),
            module.on_train_batch_end,
        )

    _, trainer = train_retriever("run", "candidates=bm25", "data.limit_windows=24", disturb=count)
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


def test_a_resumed_run_goes_on_counting_and_does_not_warn_again(train_retriever, tmp_path, capsys) -> None:
    every = ['callbacks.last_checkpoint.filename="{step}"', "+callbacks.last_checkpoint.save_top_k=-1"]
    _, trainer = train_retriever("run", *every)
    whole = next(callback for callback in trainer.callbacks if isinstance(callback, LearningMonitor))
    assert {line.split()[1] for line in said(capsys)} == {"uniform_posterior", "no_gain"}
    for step, again in ((2, 2), (6, 0)):  # running means over 4 steps: warnings came at step 4
        checkpoint = tmp_path / "run" / "checkpoints" / f"step={step}.ckpt"
        _, trainer = train_retriever(f"resumed{step}", *every, ckpt=checkpoint)
        resumed = next(callback for callback in trainer.callbacks if isinstance(callback, LearningMonitor))
        assert len(said(capsys)) == again
        ours, theirs = resumed.state_dict(), whole.state_dict()
        counts = [state.pop("proposed") for state in (ours, theirs)]
        assert ours == theirs
        assert all(
            torch.equal(torch.as_tensor(counts[0][name]), torch.as_tensor(counts[1][name])) for name in counts[0]
        )


def test_the_summary_lists_the_warnings(tiny_config, tmp_path) -> None:
    train(tiny_config("run"))
    lines = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert [line.split()[0] for line in lines] == ["uniform_posterior", "no_gain"]
    train(tiny_config("healthy", *HEALTHY))
    assert json.loads((tmp_path / "healthy" / "summary.json").read_text())["warnings"] == []


def test_a_warning_has_a_line_of_its_own_beside_a_progress_bar(train_retriever, monkeypatch) -> None:
    """What a terminal shows of a line is what follows its last carriage return."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(total=3, file=screen) as bar:
        bar.update()
        train_retriever("run")
    shown = [line.split("\r")[-1] for line in screen.getvalue().splitlines()]
    assert len([line for line in shown if line.startswith("warning: uniform_posterior at step 4: ")]) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("sample", 1), ("uniform_entropy", 1), ("one_hot_entropy", 0), ("gain", -1), ("popular_share", 2),
     ("least_spread", -0.1), ("rank_of_start", math.nan)],
)  # fmt: skip
def test_bad_values_are_named(tiny_config, name, value) -> None:
    knobs = {key: knob for key, knob in tiny_config("run").callbacks.learning_monitor.items() if key != "_target_"}
    with pytest.raises(ConfigError, match=rf"^callbacks\.guards\.{name}={value}: "):
        LearningMonitor(**knobs | {name: value})
