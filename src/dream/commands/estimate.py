"""Estimates time and memory of a training from a few of its own steps."""

import math
import resource
import sys
import time
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from dream.build import TextComponents, build_module, precision_of
from dream.objectives.attention import Attention
from dream.objectives.joint_posterior import JointPosterior
from dream.runs.estimate import duration
from dream.runs.steps import steps_of
from dream.scorers.pretraining.scratch import ScratchScorer
from dream.store.store import Store
from dream.utils.logging import quiet_lightning

EMBEDDED = 512  # passages whose embedding is timed


def estimate(cfg: DictConfig, text: TextComponents, steps: int) -> dict[str, Any]:
    """Time and memory of `dream-train` with this config, as JSON values.

    The model is built, and takes a few steps, on the configured device. Nothing is kept. A scratch language model that
    is not trained yet has random weights here: it is as fast as a trained one.

    Args:
        cfg: the training config.
        text: its parts; the store is open.
        steps: number of timed steps, after one step that warms up.
    """
    untrained = isinstance(text.scorer, ScratchScorer) and not text.scorer.is_trained(text.store)
    _leave_out_what_is_done_once(text)
    quiet_lightning()
    L.seed_everything(cfg.seed, verbose=False)
    clock = StepClock()
    trainer = instantiate(cfg.trainer, precision=precision_of(cfg.trainer), max_steps=steps + 1, max_epochs=-1,
                          devices=1, callbacks=[clock], logger=False, enable_checkpointing=False,
                          enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
                          use_distributed_sampler=False, default_root_dir=cfg.paths.data)  # fmt: skip
    device = trainer.strategy.root_device
    module = build_module(cfg, text, device)
    trainer.fit(module, text.data)
    step = float(np.median(clock.seconds[1:]))
    with trainer.precision_plugin.forward_context():
        rate = _passages_per_second(module.encoder, text.store, device)
    run_steps = steps_of(cfg.trainer, text.data)
    refreshes = refreshes_of(OmegaConf.select(cfg, "callbacks.index_refresh"), run_steps)
    passages = len(text.store.passages)
    embedding = refreshes * passages / rate
    return {
        "device": str(device),
        "seconds_per_step": round(step, 4),
        "steps": run_steps,
        "training_seconds": round(step * run_steps, 1),
        "passages_per_second": round(rate, 1),
        "refreshes": refreshes,
        "refresh_seconds": round(embedding, 1),
        "total_seconds": round(step * run_steps + embedding, 1),
        "memory_mb": round(_peak_memory(device) / 1e6),
        "index_mb": round(passages * module.encoder.width * 2 / 1e6, 1),  # float16
        "language_model_is_trained_first": untrained,
    }


def refreshes_of(settings: DictConfig | None, steps: int) -> int:
    """How often a run embeds the corpus: at its start, every n steps, and at its end."""
    if settings is None:
        return 0
    return 1 + math.ceil(steps / (settings.every_n_steps or steps))


def _leave_out_what_is_done_once(text: TextComponents) -> None:
    """Change the parts so that nothing is pretrained, written or found first. A step takes as long as without it.

    Nor is the cache of log-likelihoods read: it may know these windows, but not most windows of a run.
    """
    text.scorer.cache_megabytes = 0
    if isinstance(text.scorer, ScratchScorer):
        text.scorer.pretrains = False
    if getattr(text.data, "questions", None):
        text.data.questions = None  # writing them takes long; windows of documents take as long to score
        if isinstance(text.objective, JointPosterior) and text.objective.target == "own_passage":
            text.objective.target = "posterior"  # which needs no questions, and takes as long
    if isinstance(text.objective, Attention) and text.objective.heads == "found":
        text.objective.heads = "random"  # which are as fast, and need not be found


class StepClock(Callback):
    """The time of each optimizer step, with the wait for its batches, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ended = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:  # with gradient accumulation, a step has several batches
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.ended)
        self.ended, self.step = now, trainer.global_step


def _passages_per_second(encoder: Any, store: Store, device: torch.device) -> float:
    """Rate of embedding passages that are spread over the store."""
    ids = np.unique(np.linspace(0, len(store.passages) - 1, EMBEDDED).astype(np.int64))
    encoder.to(device).eval()
    with torch.inference_mode():
        encoder.embed_passages(store, ids[:8], device)  # warms up
        started = time.perf_counter()
        for start in range(0, len(ids), 64):
            encoder.embed_passages(store, ids[start : start + 64], device).float().cpu()
    return len(ids) / (time.perf_counter() - started)


def _peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on a GPU those of its memory, otherwise those of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def sentence(found: dict[str, Any]) -> str:
    """The estimate in one line."""
    each = found["refresh_seconds"] / max(1, found["refreshes"])
    first = " The language model is trained before that, once." if found["language_model_is_trained_first"] else ""
    return (f"Estimate on {found['device']}: {duration(found['total_seconds'])} for {found['steps']:,} steps of "
            f"{found['seconds_per_step']:.2f} s, and {found['refreshes']} times {duration(each)} to embed the corpus "
            f"({found['passages_per_second']:,.0f} passages/s). Memory: about {found['memory_mb']:,} MB, index "
            f"{found['index_mb']:,.0f} MB. Evaluation is not included.{first}")  # fmt: skip
