"""Tells when a run learns nothing: one warning a kind, with the remedy.

Shape suffixes as in `batch.py`; R rows of a sample of embeddings.
"""

import math
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dream.batch import WindowBatch
from dream.errors import require
from dream.indexes.generation import Generation
from dream.runtime import say
from dream.store.permutation import permute

SEED = 20_260_627  # of the passages whose embeddings are looked at: the same in every run


class LearningGuards(L.Callback):
    """Watches running means over the last `steps` batches, the index's embeddings and the candidates' popularity.

    Entropy, gain and popularity exist only where the objective has a posterior; the others stay silent about them.
    Stands after the refresh in the list of callbacks. What it knows is in checkpoints, so that a resumed run goes on
    counting and does not warn again; `warnings` holds what was told, by kind. Draws no random number.

    Logs train/query_cosine, train/popular_share, index/passage_cosine and index/effective_rank.
    """

    def __init__(
        self,
        steps: int,
        uniform_entropy: float,
        one_hot_entropy: float,
        gain: float,
        least_spread: float,
        spread_of_start: float,
        least_rank: float,
        rank_of_start: float,
        sample: int,
        popular_fraction: float,
        popular_share: float,
    ) -> None:
        fractions = {"uniform_entropy": uniform_entropy, "one_hot_entropy": one_hot_entropy,
                     "popular_fraction": popular_fraction, "popular_share": popular_share}  # fmt: skip
        for name, value in fractions.items():
            require(0 < value < 1, f"callbacks.guards.{name}", value, "above 0 and below 1")
        limits = {"gain": gain, "least_spread": least_spread, "spread_of_start": spread_of_start,
                  "least_rank": least_rank, "rank_of_start": rank_of_start}  # fmt: skip
        for name, value in limits.items():
            require(value >= 0, f"callbacks.guards.{name}", value, "at least 0, which hardly ever warns")
        require(steps >= 1, "callbacks.guards.steps", steps, "at least 1 batch")
        require(sample >= 2, "callbacks.guards.sample", sample, "at least 2 passages")
        self.steps, self.sample, self.gain = steps, sample, gain
        self.uniform_entropy, self.one_hot_entropy = uniform_entropy, one_hot_entropy
        self.least_spread, self.spread_of_start = least_spread, spread_of_start
        self.least_rank, self.rank_of_start = least_rank, rank_of_start
        self.popular_fraction, self.popular_share = popular_fraction, popular_share
        self.warnings: dict[str, str] = {}
        self._recent: dict[str, list[float]] = {}  # the last values of each running mean
        self._first: dict[str, float] = {}  # what embeddings measured at the start of the run
        self._generation = -1  # step of the generation that was measured last
        self._proposed_N: Tensor | None = None  # int32: how often each passage was a candidate, 4 bytes a passage

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"warnings": dict(self.warnings), "recent": dict(self._recent)}
        state |= {"first": dict(self._first), "generation": self._generation}
        if self._proposed_N is not None:
            ids = self._proposed_N.nonzero()[:, 0]
            state["proposed"] = {"passages": len(self._proposed_N), "ids": ids, "times": self._proposed_N[ids]}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.warnings, self._first = dict(state_dict["warnings"]), dict(state_dict["first"])
        self._recent = {name: list(values) for name, values in state_dict["recent"].items()}
        self._generation = state_dict["generation"]
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
            self._recent[name] = [*self._recent.get(name, []), value][-self.steps :]
        self._first.setdefault("query_cosine", values[0])
        if len(self._recent["query_cosine"]) == self.steps:
            self._judge_means(trainer, pl_module, {name: sum(self._recent[name]) / self.steps for name in seen})
        self._look_at_index(trainer, pl_module)

    def _judge_means(self, trainer: L.Trainer, pl_module: Any, mean: dict[str, float]) -> None:
        self._judge_spread(trainer, pl_module, "query", mean["query_cosine"])
        over = f"over the last {self.steps} batches"
        if "entropy" in mean:
            temperature = f"objective.lm_temperature={pl_module.objective.lm_temperature}"
            posterior = f"the LM posterior's entropy {over} is {mean['entropy']:.3f} of ln K"
            if mean["entropy"] >= self.uniform_entropy:
                remedy = (
                    f"lower {temperature}, unless train/gain ({mean['gain']:.4f}) is about 0: the scorer is at fault"
                )
                self._warn(trainer, "uniform_posterior", f"{posterior}: it prefers no candidate; {remedy}")
            if mean["entropy"] <= self.one_hot_entropy:
                remedy = f"raise {temperature}"
                self._warn(trainer, "one_hot_posterior", f"{posterior}: it sees one candidate only; {remedy}")
            if mean["gain"] <= self.gain:
                self._warn(trainer, "no_gain",
                           f"train/gain {over} is {mean['gain']:.4f} nats a target token: the language model hardly "
                           "reads its candidates; take a better scorer, pretrain it longer "
                           "(scorer.training.max_steps), or bring it better candidates (candidates=bm25)")  # fmt: skip

    def _judge_spread(self, trainer: L.Trainer, pl_module: Any, of: str, cosine: float) -> None:
        """Warn where embeddings have (nearly) one direction. An encoder may start narrow, so its start counts, too."""
        first = self._first.setdefault(f"{of}_cosine", cosine)
        if 1 - cosine <= max(self.least_spread, self.spread_of_start * (1 - first)):
            self._warn(trainer, f"collapsed_{of}_embeddings",
                       f"the mean cosine of two {of} embeddings is {cosine:.3f} ({first:.3f} at the start): all point "
                       f"the same way; {_against_collapse(trainer, pl_module)}")  # fmt: skip

    def _count(self, pl_module: Any, ids_SK: Tensor) -> None:
        if self._proposed_N is None:
            self._proposed_N = torch.zeros(len(pl_module.store.passages), dtype=torch.int32)
        ids = ids_SK[ids_SK >= 0]
        self._proposed_N.index_add_(0, ids, torch.ones(len(ids), dtype=torch.int32))

    def _judge_popularity(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert self._proposed_N is not None
        share = popular_share(self._proposed_N, self.popular_fraction)
        pl_module.log("train/popular_share", share)
        if share >= self.popular_share and len(self._recent.get("entropy", [])) == self.steps:
            self._warn(trainer, "popular_candidates",
                       f"the {self.popular_fraction:.0%} of passages that are most often candidates make {share:.0%} "
                       f"of all candidates (passage {int(self._proposed_N.argmax())} above all): mend the corpus "
                       "(boilerplate, near-copies; corpus.deduplicate=true), or raise the share of random candidates "
                       "(candidates.schedule.random)")  # fmt: skip

    def _look_at_index(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measure the embeddings of a generation that was not measured yet."""
        generation: Generation | None = pl_module.index.current
        if generation is None or generation.step == self._generation or generation.count < 2:
            return
        self._generation = generation.step
        passage_ids = permute(SEED, np.arange(min(self.sample, generation.count)), generation.count)
        embedding_RD = torch.from_numpy(generation.rows(passage_ids))
        cosine, rank = float(mean_cosine(embedding_RD)), effective_rank(embedding_RD)
        metrics = {"index/passage_cosine": cosine, "index/effective_rank": rank}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        self._judge_spread(trainer, pl_module, "passage", cosine)
        first = self._first.setdefault("effective_rank", rank)
        if rank <= max(self.least_rank, self.rank_of_start * first):
            self._warn(trainer, "low_rank_embeddings",
                       f"the passages' embeddings have an effective rank of {rank:.1f} ({first:.1f} at the start) of "
                       f"{generation.width} dimensions; {_against_collapse(trainer, pl_module)}")  # fmt: skip

    def _warn(self, trainer: L.Trainer, kind: str, text: str) -> None:
        if kind in self.warnings:
            return
        self.warnings[kind] = line = f"{kind} at step {trainer.global_step}: {text}"
        if trainer.is_global_zero:
            with tqdm.external_write_mode():  # progress bars make room for the line
                say(f"warning: {line}")


def warnings_of(trainer: L.Trainer) -> list[str]:
    """What the guards of a run told, one line each, in the order in which they told it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    guards = [callback for callback in callbacks if isinstance(callback, LearningGuards)]
    return [line for guard in guards for line in guard.warnings.values()]


def mean_cosine(embedding_RD: Tensor) -> Tensor:
    """Mean cosine of two different rows of a matrix of unit rows, from the length of their sum: no R × R matrix."""
    rows, sum_D = len(embedding_RD), embedding_RD.float().sum(0)
    return (sum_D @ sum_D - rows) / (rows * (rows - 1))


def effective_rank(embedding_RD: Tensor) -> float:
    """exp of the entropy of the singular values' shares in their sum, 1 to min(R, D) (Roy & Vetterli 2007, eq. 4)."""
    values = torch.linalg.svdvals(embedding_RD.float())
    return math.exp(torch.special.entr(values / values.sum()).sum())


def relative_entropy(posterior_SK: Tensor) -> Tensor:
    """Mean entropy of the windows' posteriors as a share of ln K: 1 is uniform, 0 one-hot."""
    return torch.special.entr(posterior_SK).sum(1).mean() / math.log(posterior_SK.shape[1])


def popular_share(proposed_N: Tensor, fraction: float) -> float:
    """Share of all candidates that the most often proposed passages take: `fraction` of the corpus' passages.

    While there were fewer candidates than the corpus has passages, `fraction` of the candidates: otherwise the most
    popular of a large corpus would have room for all of them.
    """
    times_U = proposed_N[proposed_N > 0]
    candidates = int(times_U.sum())
    popular = math.ceil(fraction * min(len(proposed_N), candidates))
    return int(times_U.topk(min(popular, len(times_U))).values.sum()) / candidates


def _against_collapse(trainer: L.Trainer, pl_module: Any) -> str:
    group = trainer.optimizers[0].param_groups[0]
    narrow = not getattr(pl_module.objective, "in_batch", True)
    more = "objective.in_batch=true" if narrow else "a larger data.batch_size"
    return (
        f"lower optimizer.optimizer.lr={group.get('initial_lr', group['lr'])}, or let texts repel more others: {more}"
    )
