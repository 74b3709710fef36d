"""Whole runs on a tiny corpus with a tiny random language model. Run: pytest tests/commands/test_train.py"""

import json
import weakref
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig, open_dict

import dream.build
from dream.build import build_module, build_text, build_trainer
from dream.commands.train import train
from dream.evaluation.searcher import Searcher
from dream.module import RetrieverModule
from dream.scorers.hf import HFScorer
from dream.utils.errors import ConfigError, DataError

STEPS = 6  # of the tiny run


class Recorder(Callback):
    """Losses and candidate ids by step, and a checkpoint of every step."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, list[list[int]] | None]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        ids = outputs.get("candidate_ids_SK")
        self.steps[trainer.global_step] = (outputs["loss"].item(), None if ids is None else ids.tolist())


def fit(cfg: DictConfig, checkpoint: str | None = None) -> tuple[Recorder, dict[str, torch.Tensor]]:
    parts = build_text(cfg)
    module = build_module(cfg, parts)
    trainer = build_trainer(cfg, parts.corpus)
    recorder = Recorder()
    every = ModelCheckpoint(Path(cfg.paths.run) / "every", "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer.callbacks[:0] = [recorder]
    trainer.callbacks.append(every)
    trainer.fit(module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
    return recorder, {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}


@pytest.mark.parametrize(
    ("override", "stops"),
    [
        ("data.workers=0", range(1, STEPS)),
        ("data.workers=2", (2, 4)),
        pytest.param("scorer.scoring.compile=auto", (2, 4), marks=pytest.mark.slow),
    ],
)
def test_resuming_at_any_step_repeats_losses_candidates_and_weights_bitwise(config, override, stops):
    """One run of 6 steps with a refresh after step 3, against runs resumed from its checkpoints."""
    whole, final = fit(config("whole", override))
    assert sorted(whole.steps) == list(range(1, STEPS + 1))
    for stop in stops:
        checkpoint = next(Path(config("whole").paths.run).glob(f"every/*step={stop}.ckpt"))
        resumed, weights = fit(config(f"resumed{stop}", override), str(checkpoint))
        assert resumed.steps == {step: whole.steps[step] for step in range(stop + 1, STEPS + 1)}
        assert all(torch.equal(weights[name], final[name]) for name in final)


def test_a_run_leaves_behind_what_search_and_the_next_run_need(config, tmp_path, capsys):
    best = train(config("run"))
    run = tmp_path / "logs" / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert best == summary["val/ndcg_at_10"]
    for system in ("bm25", "untrained", "trained", "hybrid"):
        for metric in ("ndcg_at_10", "recall_at_10", "recall_at_100", "mrr_at_10"):
            assert 0 <= summary[f"{system}/{metric}"] <= 1
    assert {"train/loss", "train/gain", "train/agreement", "train/posterior_entropy", "train/retriever_entropy",
            "index/age_steps", "index/overlap_at_10", "perf/windows_per_second", "perf/fraction_score",
            "val/recall_at_100", "val/mrr_at_10"} <= set(summary)  # fmt: skip
    assert summary["windows"] == STEPS * 4
    assert (tmp_path / "logs" / "latest").resolve() == run.resolve()
    assert not list(tmp_path.rglob(".*.tmp"))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("bm25", "untrained", "trained", "hybrid", "tensorboard", "dream-search"))
    assert "dream-export" in printed
    assert "cosine similarity" not in printed  # the example query is one for pydocs
    for mode in ("dense", "bm25", "hybrid"):
        hits = Searcher(run).search("Document words that nobody wrote", 3, mode)
        assert len(hits) == (0 if mode == "bm25" else 3)


def test_a_run_with_bfloat16_weights_can_be_searched(config, llama_folder, tmp_path):
    """Its weights are opened as float32: they have the same values, so the index still belongs to them."""
    overrides = ["encoder=hf", f"encoder.name={llama_folder}", "encoder.pooling=last"]
    train(config("run", *overrides, "encoder.dtype=bfloat16", "trainer.max_steps=2"))
    hits = Searcher(tmp_path / "logs" / "run").search("Document words", 3)
    assert len(hits) == 3


def test_checkpoints_carry_the_encoder_and_no_language_model(config, tmp_path):
    fit(config("run"))
    checkpoint = torch.load(tmp_path / "logs" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"encoder.table_VD", "encoder.weight_V"}


def test_info_nce_trains_without_proposing_or_scoring(config):
    recorder, _ = fit(config("run", "objective=info_nce"))
    assert all(ids is None for _, ids in recorder.steps.values())


def test_training_on_the_same_windows_again_and_again_overfits(config):
    """The retriever can follow the posterior on 8 windows: the loss falls to less than half."""
    recorder, _ = fit(
        config(
            "run",
            "data.limit_windows=8",
            "data.batch_size=8",
            "candidates=bm25",
            "candidates.k=4",
            "objective.in_batch=false",
            "trainer.max_steps=60",
            "callbacks.index_refresh.every_n_steps=30",
            "optimizer.optimizer.lr=0.02",
        )
    )
    losses = [recorder.steps[step][0] for step in sorted(recorder.steps)]
    assert losses[-1] < losses[0] / 2


def test_a_checkpoint_of_another_store_is_refused_by_name(config):
    fit(config("run"))
    checkpoint = config("run").paths.run + "/checkpoints/last.ckpt"
    with pytest.raises(DataError, match="another store"):
        fit(config("other", "data.passage_tokens=20"), checkpoint)


def test_a_second_run_scores_nothing_and_learns_the_same(config, tmp_path):
    """Another temperature meets the same BM25 candidates: all that the LM has to say is known."""
    fit(config("first", "candidates=bm25", "candidates.scored_windows=3"))
    warm, _ = fit(config("warm", "candidates=bm25", "objective.temperature=0.2"))
    cached = tmp_path / "data" / "loglik"
    cached.rename(tmp_path / "warm")
    cold, _ = fit(config("cold", "candidates=bm25", "objective.temperature=0.2"))
    without, _ = fit(config("without", "candidates=bm25", "objective.temperature=0.2", "scorer.cache_megabytes=0"))
    assert warm.steps == cold.steps == without.steps
    parts = build_text(config("again", "candidates=bm25"))
    parts.scorer.load(parts.store)
    some = torch.tensor(next(iter(warm.steps.values()))[1])
    windows = next(iter(parts.data.train_dataloader())).window_ids_B[: len(some)]
    parts.scorer.loglik(parts.store, windows, some)
    assert (parts.scorer.pairs_asked, parts.scorer.pairs_scored) == (12, 0)


def test_windows_that_are_not_scored_bring_hard_negatives(config):
    """Of 4 windows 3 are scored. The fourth's candidates are more negatives for all: the same step's loss is higher."""
    few, many = (
        fit(config(name, f"candidates.hard_negatives={name == 'many'}", "trainer.max_steps=1"))[0].steps[1]
        for name in ("few", "many")
    )
    assert few[1] == many[1]  # candidates of those that are scored
    assert many[0] > few[0]


def test_a_run_without_any_target_is_refused(config):
    cfg = config("run", "candidates.scored_windows=0", "objective.continuation=0")
    with pytest.raises(ConfigError, match="candidates.scored_windows=0: no window has a target"):
        build_text(cfg)


def test_hard_negatives_alone_need_no_forward_of_the_language_model(config):
    cfg = config("run", "candidates.scored_windows=0", "trainer.max_steps=2")
    recorder, _ = fit(cfg)
    assert all(ids is None and loss > 0 for loss, ids in recorder.steps.values())


EVERY_OBJECTIVE = {
    "kl_posterior": ["objective.null_similarity=0.1", "objective.unhelped_weight=0.5"],
    "marginal": ["objective.null_similarity=0.1"],
    "joint_posterior": [],
    "leave_one_out": ["scorer.scoring.max_passage_tokens=24"],  # the tiny model has few positions
    "attention": ["scorer.scoring.max_passage_tokens=24", "objective.heads=all"],
    "in_batch_attention": [],
}


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_every_objective_learns_from_the_language_model_alone(config, objective):
    """The same 8 windows again and again, nothing of their continuations: the loss falls."""
    cfg = config(
        "run",
        f"objective={objective}",
        *EVERY_OBJECTIVE[objective],
        "objective.continuation=0",
        "data.limit_windows=8",
        "data.batch_size=8",
        "candidates=bm25",
        "candidates.scored_windows=null",
        "trainer.max_steps=25",
        "callbacks.index_refresh.every_n_steps=0",
        "optimizer.optimizer.lr=0.02",
    )
    recorder, _ = fit(cfg)
    losses = [recorder.steps[step][0] for step in sorted(recorder.steps)]
    assert sum(losses[-3:]) / 3 < losses[0] - 1e-3


@pytest.mark.parametrize("objective", ["marginal", "attention", "in_batch_attention"])
def test_other_objectives_take_continuations_too_and_resume_bitwise(config, objective):
    """Of 4 windows 3 are scored; the fourth only has its continuation. A run stopped at step 2 resumes exactly."""
    options = [f"objective={objective}", *EVERY_OBJECTIVE[objective], "trainer.max_steps=4"]
    whole, final = fit(config("whole", *options))
    checkpoint = next(Path(config("whole").paths.run).glob("every/*step=2.ckpt"))
    resumed, weights = fit(config("resumed", *options), str(checkpoint))
    assert resumed.steps == {step: whole.steps[step] for step in (3, 4)}
    assert all(torch.equal(weights[name], final[name]) for name in final)
    alone, _ = fit(config("alone", *options, "candidates.scored_windows=0"))
    assert all(loss > 0 for loss, _ in alone.steps.values())


@pytest.mark.parametrize(
    ("override", "folders"),
    [("logger=[csv,tensorboard]", {"csv", "tensorboard"}), ("~logger", set()), ("logger=csv", {"csv"})],
)
def test_a_run_has_the_loggers_that_are_chosen(config, tmp_path, override, folders):
    """Several at once, or none; csv/metrics.csv and tensorboard/events… are in the run's folder."""
    train(config("run", override, "trainer.max_steps=2"))
    run = tmp_path / "logs" / "run"
    assert {name for name in ("csv", "tensorboard", "lightning_logs") if (run / name).exists()} == folders


def test_the_language_model_is_loaded_on_the_trainers_device(config, monkeypatch):
    """Before training, it already writes questions and finds heads."""
    devices, load, build = [], HFScorer.load, dream.build.build_module
    monkeypatch.setattr(HFScorer, "load", lambda scorer, store: (devices.append(scorer.device), load(scorer, store)))
    cfg = config("built")
    build(cfg, build_text(cfg), torch.device("cpu:0"))
    monkeypatch.setattr(
        "dream.build.build_module", lambda cfg, text, device: (devices.append(device), build(cfg, text, device))[1]
    )
    train(config("run", "trainer.max_steps=1"))
    trainers = torch.device("cpu")
    assert devices == [torch.device("cpu:0"), trainers, trainers]


def test_a_run_leaves_no_model_in_memory(config, monkeypatch):
    """The jobs of a sweep run in one process, one after the other."""
    modules, create = [], RetrieverModule.__init__

    def record(module, *arguments, **settings):
        modules.append(weakref.ref(module))
        create(module, *arguments, **settings)

    monkeypatch.setattr(RetrieverModule, "__init__", record)
    train(config("run", "trainer.max_steps=1"))
    assert [module() for module in modules] == [None]


def test_a_run_without_callbacks_says_what_it_lacks(config, tmp_path, capsys):
    cfg = config("run", "trainer.max_steps=2")
    with open_dict(cfg):
        del cfg["callbacks"]  # as callbacks=null on the command line
    train(cfg)
    assert "without callbacks.index_refresh the run has no index" in capsys.readouterr().out
    assert json.loads((tmp_path / "logs" / "run" / "summary.json").read_text())["steps"] == 2


def test_a_run_resumed_after_its_last_step_has_the_same_summary(config, tmp_path):
    train(config("run"))
    summary = tmp_path / "logs" / "run" / "summary.json"
    first = json.loads(summary.read_text())
    summary.unlink()  # as if it had been killed before its end
    train(config("unused", "ckpt=last"))
    again = json.loads(summary.read_text())
    assert again["train/loss"] == first["train/loss"]
    assert set(first) == set(again)


def test_a_run_that_starts_from_another_runs_checkpoint_has_only_its_own_metrics(config, tmp_path):
    train(config("run"))
    checkpoint = tmp_path / "logs" / "run" / "checkpoints" / "last.ckpt"
    assert "train/gain" in json.loads((tmp_path / "logs" / "run" / "summary.json").read_text())
    train(config("other", "objective=info_nce", f"ckpt={checkpoint}"))
    summary = json.loads((tmp_path / "logs" / "other" / "summary.json").read_text())
    assert [name for name in summary if name.startswith("train/")] == []
    assert Searcher(tmp_path / "logs" / "other").run.index.current.step == summary["steps"]  # it has its own index
