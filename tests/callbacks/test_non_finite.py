"""A run with inf or nan stops before the step and reports where. Run: pytest tests/callbacks/test_non_finite.py"""

import json
import math
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from dream.store.store import ENCODER, SCORER
from dream.utils.errors import NumericalError


@pytest.fixture
def stop(train_retriever, tmp_path):
    """stop(*overrides, disturb, taken) → (message, report, module) of a run that must stop.

    Unless the last step was `taken`, the encoder's weights are bitwise those before it.
    """

    def run(*overrides: str, disturb=lambda module: None, taken=False) -> tuple[str, dict[str, Any], Any]:
        before, modules = {}, []

        def prepare(module: Any) -> None:
            disturb(module)
            modules.append(module)
            take_step = module.optimizer_step

            def note_weights(*arguments: Any, **options: Any) -> None:
                before.update({name: weight.clone() for name, weight in module.encoder.state_dict().items()})
                take_step(*arguments, **options)

            module.optimizer_step = note_weights

        with pytest.raises(NumericalError) as error:
            train_retriever("run", *overrides, disturb=prepare)
        weights = modules[0].encoder.state_dict()
        same = all(torch.equal(weights[name].nan_to_num(), before[name].nan_to_num()) for name in weights)
        assert same is not taken
        message, file = str(error.value), tmp_path / "run" / "non_finite.json"
        assert "\n" not in message
        assert str(file) in message
        return message, json.loads(file.read_text(), parse_constant=pytest.fail), modules[0]

    return run


def rarest_token(store, side: int) -> int:
    """The token of the first passages that the fewest passages have; not the padding."""
    passages = [set(store.passage_tokens(row, side).tolist()) for row in range(len(store.passages))]
    counts = np.bincount([token for tokens in passages for token in tokens])
    return min((token for token in passages[0] if token), key=lambda token: (counts[token], token))


def test_a_language_model_that_gives_nan_for_one_token(stop):
    """The embedding of one rare token is nan: only the pairs with this token are nan, and they are reported."""
    tokens = []

    def break_one_token(module: Any) -> None:
        tokens.append(rarest_token(module.store, SCORER))
        with torch.no_grad():
            module.scorer.model.get_input_embeddings().weight[tokens[0]] = math.nan

    message, report, module = stop("trainer.max_steps=60", disturb=break_one_token)
    assert "scorer.name=" in message
    assert "weights are not finite (model.embed_tokens.weight)" in message
    assert report["step"] == module.global_step > 0
    store = module.store
    described = {window["window_id"]: window for window in report["windows"]}
    assert list(described) == report["broken_window_ids"]
    assert 0 < len(described) < 3
    assert len(report["window_ids"]) == 8
    for window_id, window in described.items():
        read = np.concatenate(store.window_tokens(window_id, SCORER)).tolist()
        assert [candidate["loglik"] == "nan" for candidate in window["candidates"]] == [
            tokens[0] in read[:-1] + store.passage_tokens(candidate["passage_id"], SCORER).tolist()
            for candidate in window["candidates"]
        ]
        context, target = store.window_text(window_id)
        assert (window["context"], window["target"]) == (context, target)
        assert window["candidates"][0]["text"] == store.passage_text(window["candidates"][0]["passage_id"])


def test_a_language_model_that_overflows(stop):
    def overflow(module: Any) -> None:
        with torch.no_grad():
            module.scorer.model.lm_head.weight[5] = 3e38

    message, report, _ = stop("scorer.scoring.dtype=bfloat16", disturb=overflow)
    # nan or -inf: processors add a row of weights in different orders
    assert re.search(r"scorer\.scoring\.dtype=bfloat16: the language model gives (nan|-inf) as", message)
    assert "choose float32" in message
    assert report["step"] == 0
    message, *_ = stop("scorer.scoring.dtype=float32", disturb=overflow)
    assert "although it is in float32; take another model" in message


def test_a_log_likelihood_that_the_loss_forgives(stop):
    """-inf is a probability of 0: the loss stays finite, but the value is wrong."""

    def forbid_one_pair(module: Any) -> None:
        loglik = module.scorer.loglik

        def with_one_impossible(*arguments: Any, **options: Any) -> torch.Tensor:
            loglik_SK = loglik(*arguments, **options)
            loglik_SK[1, 2] = -math.inf if module.global_step == 2 else loglik_SK[1, 2]
            return loglik_SK

        module.scorer.loglik = with_one_impossible

    message, report, _ = stop(disturb=forbid_one_pair)
    assert "gives -inf as log-likelihood" in message
    assert report["step"] == 2
    assert math.isfinite(report["loss"])
    assert report["broken_window_ids"] == [report["window_ids"][1]]
    assert [row["loglik"] == "-inf" for row in report["windows"][0]["candidates"]] == [False, False, True, False]


@pytest.mark.parametrize("objective", ["info_nce", "kl_posterior"])
def test_an_encoder_with_a_broken_weight(stop, objective):
    """Only windows with the token in their query, continuation or candidates are broken."""
    tokens = []

    def break_one_token(module: Any) -> None:
        tokens.append(rarest_token(module.store, ENCODER))
        start_batch = module.on_train_batch_start

        def break_at_step_3(*arguments: Any) -> None:
            start_batch(*arguments)
            if module.global_step == 3:
                with torch.no_grad():
                    module.encoder.table_VD[module.encoder.row_V[tokens[0]]] = math.nan

        module.on_train_batch_start = break_at_step_3

    options = [f"objective={objective}", "trainer.max_steps=60", "callbacks.index_refresh.every_n_steps=0",
               "optimizer.optimizer.lr=0.25", "callbacks.last_checkpoint=null"]  # fmt: skip
    message, report, module = stop(*options, disturb=break_one_token)
    assert message.startswith("optimizer.optimizer.lr=0.25: training has diverged, encoder.table_VD")
    assert report["step"] >= 3
    store, candidates = module.store, {window["window_id"]: window["candidates"] for window in report["windows"]}
    expected = []
    for window_id in report["window_ids"]:
        texts = [store.window_tokens(window_id, ENCODER)[0], store.continuation(window_id, 128)]
        texts += [store.passage_tokens(row["passage_id"], ENCODER) for row in candidates.get(window_id, [])]
        if any(tokens[0] in text for text in texts):
            expected.append(window_id)
    assert report["broken_window_ids"] == expected != []
    assert len(expected) < 8


def test_a_loss_that_is_not_finite(stop):
    message, report, _ = stop("objective.temperature=1e-44")
    assert "objective.temperature=1e-44: the loss is nan" in message
    assert report["loss"] == "nan"
    assert report["broken_window_ids"] == []
    assert len(report["windows"]) == 8


def test_a_gradient_that_is_not_finite(stop):
    """The loss is about 1e30, which float32 holds, but not the square of its gradient."""
    message, report, _ = stop("objective.temperature=1e-30", "optimizer.optimizer.lr=0.25")
    assert "the norm of the gradient is inf although the loss is finite" in message
    assert "objective.temperature=1e-30" in message
    assert report["gradient_norm"] == "inf"
    assert math.isfinite(report["loss"])


def test_weights_that_have_grown_out_of_range(stop):
    """After a step of this size the weights are still finite, but their squares are not."""
    message, report, _ = stop("optimizer.optimizer.lr=1e38")
    assert message.startswith("optimizer.optimizer.lr=1e+38: the encoder, whose largest weight is ")
    assert report["step"] == 1
    assert len(report["broken_window_ids"]) == 8


def test_weights_that_a_step_broke_reach_no_checkpoint(stop, tmp_path):
    def break_weights(module: Any) -> None:
        take_step = module.optimizer_step

        def break_in_step_4(*arguments: Any, **options: Any) -> None:
            take_step(*arguments, **options)
            if module.global_step == 3:
                with torch.no_grad():
                    module.encoder.weight_V[0] = math.inf

        module.optimizer_step = break_in_step_4

    message, report, _ = stop(disturb=break_weights, taken=True)
    assert "encoder.weight_V" in message
    assert report["step"] == 4
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


def test_the_person_at_the_terminal_sees_one_line(tiny_overrides, tmp_path):
    command = [sys.executable, "-m", "dream.commands.train", *tiny_overrides("run"), "objective.temperature=1e-44"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: objective.temperature=1e-44: the loss is nan")
    assert str(tmp_path / "run" / "non_finite.json") in last


def test_a_healthy_run_reports_nothing(train_retriever, tmp_path):
    _, trainer = train_retriever("run")
    assert trainer.callback_metrics["train/gradient_norm"] > 0
    assert not (tmp_path / "run" / "non_finite.json").exists()


def test_the_report_describes_at_most_so_many_windows(stop, monkeypatch):
    monkeypatch.setattr("dream.callbacks.non_finite.WINDOWS", 3)
    monkeypatch.setattr("dream.callbacks.non_finite.CHARACTERS", 10)
    _, report, _ = stop("objective.temperature=1e-44")
    assert [window["window_id"] for window in report["windows"]] == report["window_ids"][:3]
    texts = [text for window in report["windows"] for text in (window["context"], window["target"])]
    assert {len(text) for text in texts} == {10}
