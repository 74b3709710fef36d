"""The LightningModule: encode, propose, score, loss, log."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from dream.batch import WindowBatch
from dream.encoders.base import Encoder
from dream.errors import DataError
from dream.objectives.base import Candidates, Evidence, Objective
from dream.scorers.base import CausalScorer
from dream.scorers.reading import Reading
from dream.store.store import SCORER, Store
from dream.timing import Timer

PARTS = ("data", "encode", "propose", "score", "step", "refresh")


class RetrieverModule(L.LightningModule):
    """Trains `encoder` with `objective`. The frozen scorer is a plain attribute: it has no place in checkpoints."""

    strict_loading = False

    def __init__(
        self,
        encoder: Encoder,
        scorer: CausalScorer,
        objective: Objective,
        candidates: Any,
        index: Any,
        store: Store,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler],
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.scorer, self.objective, self.candidates = scorer, objective, candidates
        self.index, self.store = index, store
        self.make_optimizer, self.make_schedule, self.seed = optimizer, schedule, seed
        self.outputs: dict[str, Tensor] = {}  # of the last training step
        self.timer = Timer()
        self._clock = self._batch_ended = time.perf_counter()

    def training_step(self, windows: WindowBatch, batch_idx: int) -> dict[str, Tensor]:
        """One step. What it returns beside the loss feeds the monitor, and the guards before the update."""
        with self.timer("encode"):
            query_BD = self.encoder(windows.context, "query")
        candidates, continuation_sim_BB = None, None
        if self.objective.needs_candidates:
            scored, proposed = (windows.head(count) for count in self.candidates.counts(len(windows)))
            with self.timer("propose"):
                query_PD = query_BD[: len(proposed)].detach()
                candidate_ids_PK = self.candidates.propose(proposed, query_PD, self.global_step)
            ids = scored.window_ids_B, candidate_ids_PK[: len(scored)]
            reading = Reading(self.scorer, self.store, *ids, self.timer)
            with self.timer("encode"):
                candidates = self._compare(windows, query_BD, candidate_ids_PK, reading)
        if self.objective.needs_continuation:
            with self.timer("encode"):
                continuation_sim_BB = query_BD @ self.encoder(windows.continuation, "passage").T
        same_document_BB = windows.document_ids_B[:, None] == windows.document_ids_B
        loss = self.objective(Evidence(same_document_BB, candidates, continuation_sim_BB))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(windows))
        self.outputs = {"loss": loss, "query_BD": query_BD.detach()}
        if candidates is not None and len(scored):
            self.outputs |= self._supervision(scored, candidates)
        return self.outputs

    def _compare(
        self, windows: WindowBatch, query_BD: Tensor, candidate_ids_PK: Tensor, reading: Reading
    ) -> Candidates:
        """Similarities with every distinct candidate of the step, from the current encoder: never the index's."""
        distinct_U, columns_PK = torch.unique(candidate_ids_PK, return_inverse=True)
        passages = self.store.passage_batch(distinct_U, self.encoder.max_tokens).to(self.device)
        sim_BU = query_BD @ self.encoder(passages, "passage").T
        documents_U = torch.from_numpy(self.store.passage_documents[distinct_U.cpu().numpy()]).to(self.device)
        columns_PK = columns_PK.to(self.device)
        allowed_BU = documents_U != windows.document_ids_B[:, None]
        # A window's own candidates stay, whatever the exclusion rule let through.
        allowed_BU[: len(columns_PK)].scatter_(1, columns_PK, True)
        return Candidates(sim_BU, columns_PK[: len(reading.window_ids_S)], allowed_BU, distinct_U, reading)

    def _supervision(self, scored: WindowBatch, candidates: Candidates) -> dict[str, Tensor]:
        """Log how informative the LM is and how well the retriever follows it; both beliefs, for the callbacks.

        An objective that asks for no number about single candidates has no posterior.
        """
        sim_SK, loglik_SK = candidates.sim_SK.detach(), candidates.reading.told_SK
        retriever_SK = torch.softmax(sim_SK / self.objective.temperature, dim=1)
        entropy = torch.special.entr(retriever_SK).sum(1).mean()
        self.log("train/retriever_entropy", entropy, batch_size=len(scored))
        seen = {"candidate_ids_SK": candidates.reading.candidate_ids_SK, "sim_SK": sim_SK, "retriever_SK": retriever_SK}
        if loglik_SK is None:
            return seen
        posterior_SK = torch.softmax(loglik_SK / self.objective.lm_temperature, dim=1)
        ranges = self.store.windows["tokens"][scored.window_ids_B.cpu().numpy(), SCORER]
        target_tokens_S = torch.from_numpy(ranges[:, 2] - ranges[:, 1]).to(self.device)
        best_S = posterior_SK.argmax(1)
        best_loglik_S = loglik_SK.gather(1, best_S[:, None])[:, 0]
        gain_S = (best_loglik_S - loglik_SK.mean(1)) / target_tokens_S
        metrics = {
            "train/posterior_entropy": torch.special.entr(posterior_SK).sum(1).mean(),
            "train/agreement": (best_S == retriever_SK.argmax(1)).float().mean(),
            "train/gain": gain_S.mean(),
        }
        self.log_dict(metrics, batch_size=len(scored))
        return seen | {"loglik_SK": loglik_SK, "gain_S": gain_S, "posterior_SK": posterior_SK}

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.encoder.parameters())
        schedule = self.make_schedule(optimizer, max_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's own, which refuses fused optimizers."""
        if gradient_clip_val:
            by_value = gradient_clip_algorithm == "value"
            clip = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
            clip(self.encoder.parameters(), gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        before, known = time.perf_counter(), sum(self.timer.seconds.values())
        super().optimizer_step(*args, **kwargs)
        inside = sum(self.timer.seconds.values()) - known
        self.timer.seconds["step"] += time.perf_counter() - before - inside

    def on_fit_start(self) -> None:
        if self.scorer.device.type != self.device.type:  # it is no submodule, so that Lightning does not move it
            self.scorer.to(self.device)

    def on_train_start(self) -> None:
        self.encoder.train()
        self._windows = 0
        self._pairs = (self.scorer.pairs_asked, self.scorer.pairs_scored)
        self.timer.seconds.clear()
        self._clock = self._batch_ended = time.perf_counter()

    def on_train_batch_start(self, batch: WindowBatch, batch_idx: int) -> None:
        # Dropout of a step depends on the seed and the step alone, so that a resumed run repeats it.
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)
        self.timer.seconds["data"] += time.perf_counter() - self._batch_ended

    def on_train_batch_end(self, outputs: Any, batch: WindowBatch, batch_idx: int) -> None:
        self._windows += len(batch) * self.trainer.world_size
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.global_step % every == 0:
            wall = time.perf_counter() - self._clock
            self.log("perf/windows_per_second", self._windows / wall, prog_bar=True)
            self.log_dict({f"perf/fraction_{part}": self.timer.seconds[part] / wall for part in PARTS})
            asked, scored = self.scorer.pairs_asked - self._pairs[0], self.scorer.pairs_scored - self._pairs[1]
            if asked:
                self.log("perf/cache_hit_rate", 1 - scored / asked)
            self._pairs = (self.scorer.pairs_asked, self.scorer.pairs_scored)
            self.timer.seconds.clear()
            self._clock, self._windows = time.perf_counter(), 0
        self._batch_ended = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["belongs_to"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs: Mapping[str, str] = checkpoint.get("belongs_to", {})
        for what, ours in self._identity().items():
            if theirs.get(what) != ours:
                raise DataError(
                    f"ckpt: the checkpoint was made with another {what} ({theirs.get(what)}, this run has {ours}); "
                    "resume with the config of the run that wrote it"
                )

    def _identity(self) -> dict[str, str]:
        return {"store": self.store.hash, "encoder": type(self.encoder).__name__}
