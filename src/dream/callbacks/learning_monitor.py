"""Warns if a run learns nothing.

Shape suffixes as in `batch.py`; R sampled embeddings.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from dream.batch import WindowBatch
from dream.indexes.snapshot import IndexSnapshot
from dream.runs.layout import is_in_run
from dream.store.permutation import permute
from dream.utils.logging import get_logger

log = get_logger(__name__)

SEED = 20_260_627  # fixed, so every run samples the same passages


@dataclass(frozen=True)
class Thresholds:
    """When to warn. All measurements are on pydocs with the default config.

    Attributes:
        steps: batches over which values are averaged. The first warning comes after this number of batches.
        uniform_entropy: at or above this fraction of ln K, the LM posterior prefers no candidate. Measured: untrained
            scorers 0.9997, a scratch scorer after 400 steps of pretraining 0.977.
        one_hot_entropy: at or below this fraction of ln K, the posterior has only one candidate (with K = 8 its
            probability is about 99.5 %).
        gain: nats per target token; at or below this value, the scorer does not use its candidates. Measured: untrained
            scorers 0.002 to 0.006, by chance; a scratch scorer after 400 steps of pretraining 0.035.
        least_spread: 1 - mean cosine of two embeddings; at or below this value, they have collapsed. Measured: static
            passages 0.69 before training, 0.99 after 50 steps.
        spread_of_start: the same threshold as a fraction of the spread at the start of the run.
        least_rank: effective rank; at or below this value, the passages' embeddings have collapsed. Measured: static
            336 of 512 before training, 345 after 100 steps.
        rank_of_start: the same threshold as a fraction of the effective rank at the start of the run.
        sample: passages whose embeddings are measured at each refresh.
        popular_fraction: the most frequent candidates are called popular; they are this fraction of all passages.
        popular_share: share of all candidates; at or above this value, popular passages displace the others. Measured:
            0.02 to 0.03.
    """

    steps: int = 100
    uniform_entropy: float = 0.995
    one_hot_entropy: float = 0.02
    gain: float = 0.01
    least_spread: float = 0.02
    spread_of_start: float = 0.1
    least_rank: float = 4
    rank_of_start: float = 0.1
    sample: int = 1024
    popular_fraction: float = 0.01
    popular_share: float = 0.25


class LearningMonitor(L.Callback):
    """Warns if a run learns nothing, once for each kind of problem. Warnings name the remedy and are in summary.json.

    Measures means over the last batches, the embeddings in the index, and how often each passage is a candidate.
    Entropy, gain and popularity exist only for objectives with a posterior. Checkpoints contain the state, so a resumed
    run does not repeat a warning. A run that starts from the checkpoint of another run takes no state over: warnings
    and means of that run, perhaps with another objective, say nothing about this one. No random numbers are used.

    Logs `train/query_cosine`, `train/popular_share`, `index/passage_cosine` and `index/effective_rank`.

    Order: after `IndexRefresh`, so that a new snapshot is measured at the step of its refresh.

    Args:
        thresholds: when to warn; None: the defaults of `Thresholds`.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.limits = thresholds or Thresholds()
        self.warnings: dict[str, str] = {}
        self._recent: dict[str, list[float]] = {}  # the last values of each mean
        self._first: dict[str, float] = {}  # measurements of the embeddings at the start of the run
        self._of_other_run = False  # whether the checkpoint is of another run
        self._snapshot = -1  # step of the snapshot that was measured last
        self._proposed_N: Tensor | None = None  # int32: how often each passage was a candidate; 4 bytes per passage

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"warnings": dict(self.warnings), "recent": dict(self._recent)}
        state |= {"first": dict(self._first), "snapshot": self._snapshot}
        if self._proposed_N is not None:
            ids = self._proposed_N.nonzero()[:, 0]
            state["proposed"] = {"passages": len(self._proposed_N), "ids": ids, "times": self._proposed_N[ids]}
        return state

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning calls it before `load_state_dict`, which does not get the trainer."""
        self._of_other_run = not is_in_run(Path(trainer.ckpt_path or "."), Path(trainer.default_root_dir))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._of_other_run:
            return
        self.warnings, self._first = dict(state_dict["warnings"]), dict(state_dict["first"])
        self._recent = {name: list(values) for name, values in state_dict["recent"].items()}
        self._snapshot = state_dict["snapshot"]
        if proposed := state_dict.get("proposed"):
            self._proposed_N = torch.zeros(proposed["passages"], dtype=torch.int32)
            self._proposed_N[proposed["ids"]] = proposed["times"]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._look_at_index(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._look_at_index(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: WindowBatch, batch_idx: int
    ) -> None:
        logs = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        seen = {"query_cosine": mean_cosine(outputs["query_BD"])}
        if logs:
            pl_module.log("train/query_cosine", seen["query_cosine"])
        if "posterior_SK" in outputs:
            seen["entropy"] = relative_entropy(outputs["posterior_SK"])
            seen["gain"] = outputs["gain_S"].mean()
            self._count(pl_module, outputs["candidate_ids_SK"].cpu())
            if logs:
                self._judge_popularity(trainer, pl_module)
        values = torch.stack([value.float() for value in seen.values()]).tolist()  # one wait for the device
        for name, value in zip(seen, values, strict=True):
            self._recent[name] = [*self._recent.get(name, []), value][-self.limits.steps :]
        self._first.setdefault("query_cosine", values[0])
        recent = {name: self._recent[name] for name in seen if len(self._recent[name]) == self.limits.steps}
        self._judge_means(trainer, pl_module, {name: sum(last) / len(last) for name, last in recent.items()})
        self._look_at_index(trainer, pl_module)

    def _judge_means(self, trainer: L.Trainer, pl_module: Any, mean: dict[str, float]) -> None:
        if "query_cosine" in mean:
            self._judge_spread(trainer, pl_module, "query", mean["query_cosine"])
        over = f"over the last {self.limits.steps} batches"
        if "entropy" in mean:
            temperature = f"objective.lm_temperature={pl_module.objective.lm_temperature}"
            posterior = f"the LM posterior's entropy {over} is {mean['entropy']:.3f} of ln K"
            if mean["entropy"] >= self.limits.uniform_entropy:
                remedy = f"lower {temperature}, or take a better scorer if train/gain ({mean['gain']:.4f}) is about 0"
                self._warn(trainer, "uniform_posterior", f"{posterior}: it prefers no candidate; {remedy}")
            if mean["entropy"] <= self.limits.one_hot_entropy:
                remedy = f"raise {temperature}"
                self._warn(trainer, "one_hot_posterior", f"{posterior}: one candidate has nearly all of it; {remedy}")
            if mean["gain"] <= self.limits.gain:
                self._warn(trainer, "no_gain",
                           f"train/gain {over} is {mean['gain']:.4f} nats per target token: the language model hardly "
                           "uses its candidates; take a better scorer, pretrain it longer "
                           "(scorer.training.max_steps), or choose better candidates (candidates=bm25)")  # fmt: skip

    def _judge_spread(self, trainer: L.Trainer, pl_module: Any, of: str, cosine: float) -> None:
        """Warn if all embeddings have nearly the same direction, in absolute terms or compared with the run's start."""
        first = self._first.setdefault(f"{of}_cosine", cosine)
        if 1 - cosine <= max(self.limits.least_spread, self.limits.spread_of_start * (1 - first)):
            self._warn(trainer, f"collapsed_{of}_embeddings",
                       f"the mean cosine of two {of} embeddings is {cosine:.3f} ({first:.3f} at the start): all have "
                       f"nearly the same direction; {_against_collapse(trainer, pl_module)}")  # fmt: skip

    def _count(self, pl_module: Any, ids_SK: Tensor) -> None:
        if self._proposed_N is None:
            self._proposed_N = torch.zeros(len(pl_module.store.passages), dtype=torch.int32)
        ids = ids_SK[ids_SK >= 0]
        self._proposed_N.index_add_(0, ids, torch.ones(len(ids), dtype=torch.int32))

    def _judge_popularity(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert self._proposed_N is not None
        share = popular_share(self._proposed_N, self.limits.popular_fraction)
        pl_module.log("train/popular_share", share)
        if share >= self.limits.popular_share and len(self._recent.get("entropy", [])) == self.limits.steps:
            self._warn(trainer, "popular_candidates",
                       f"the most frequent {self.limits.popular_fraction:.0%} of passages make up {share:.0%} of all "
                       f"candidates (most often passage {int(self._proposed_N.argmax())}): remove boilerplate "
                       "and copies from the corpus (corpus.deduplicate=true), or choose candidates=random")  # fmt: skip

    def _look_at_index(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measure the embeddings of the current snapshot, once."""
        snapshot: IndexSnapshot | None = pl_module.index.current
        if snapshot is None or snapshot.step == self._snapshot or snapshot.count < 2:
            return
        self._snapshot = snapshot.step
        passage_ids = permute(SEED, np.arange(min(self.limits.sample, snapshot.count)), snapshot.count)
        embedding_RD = torch.from_numpy(snapshot.rows(passage_ids))
        cosine, rank = float(mean_cosine(embedding_RD)), effective_rank(embedding_RD)
        metrics = {"index/passage_cosine": cosine, "index/effective_rank": rank}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        self._judge_spread(trainer, pl_module, "passage", cosine)
        first = self._first.setdefault("effective_rank", rank)
        if rank <= max(self.limits.least_rank, self.limits.rank_of_start * first):
            self._warn(trainer, "low_rank_embeddings",
                       f"the passages' embeddings have an effective rank of {rank:.1f} ({first:.1f} at the start) of "
                       f"{snapshot.width} dimensions; {_against_collapse(trainer, pl_module)}")  # fmt: skip

    def _warn(self, trainer: L.Trainer, kind: str, text: str) -> None:
        if kind in self.warnings:
            return
        self.warnings[kind] = line = f"{kind} at step {trainer.global_step}: {text}"
        log.warning(line)


def mean_cosine(embedding_RD: Tensor) -> Tensor:
    """Mean cosine of two different rows, which have length 1: (|sum of rows|² - R) / (R (R - 1)), without R² memory."""
    rows, sum_D = len(embedding_RD), embedding_RD.float().sum(0)
    return (sum_D @ sum_D - rows) / (rows * (rows - 1))


def effective_rank(embedding_RD: Tensor) -> float:
    """exp of the entropy of the normalised singular values, from 1 to min(R, D) (Roy & Vetterli 2007, eq. 4)."""
    values = torch.linalg.svdvals(embedding_RD.float())
    return math.exp(torch.special.entr(values / values.sum()).sum())


def relative_entropy(posterior_SK: Tensor) -> Tensor:
    """Mean entropy of the posteriors as a fraction of ln K: 1 is uniform, 0 is one-hot."""
    return torch.special.entr(posterior_SK).sum(1).mean() / math.log(posterior_SK.shape[1])


def popular_share(proposed_N: Tensor, fraction: float) -> float:
    """Share of all candidates that are among the most frequent `fraction` of passages.

    If there were fewer candidates than passages so far, `fraction` refers to the number of candidates. Otherwise the
    popular passages of a large corpus could include all candidates.
    """
    times_U = proposed_N[proposed_N > 0]
    candidates = int(times_U.sum())
    popular = math.ceil(fraction * min(len(proposed_N), candidates))
    return int(times_U.topk(min(popular, len(times_U))).values.sum()) / candidates


def _against_collapse(trainer: L.Trainer, pl_module: Any) -> str:
    group = trainer.optimizers[0].param_groups[0]
    narrow = not getattr(pl_module.objective, "in_batch", True)
    remedy = "objective.in_batch=true" if narrow else "a larger data.batch_size"
    return f"lower optimizer.optimizer.lr={group.get('initial_lr', group['lr'])}, or use more negatives: {remedy}"
