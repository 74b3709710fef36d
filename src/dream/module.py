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
from dream.store.store import SCORER, Store
from dream.timing import Timer

PARTS = ("data", "encode", "propose", "score", "step", "refresh")


class RetrieverModule(L.LightningModule):
    """Trains `encoder` with `objective`. The frozen scorer is a plain attribute: it has no place in checkpoints."""

    strict_loading = False

    def __init__(
        self,
        encoder: Encoder,
        scorer: Any,
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
        self.timer = Timer()
        self._clock = self._batch_ended = time.perf_counter()

    def training_step(self, windows: WindowBatch, batch_idx: int) -> dict[str, Tensor]:
        """One step. What it returns beside the loss feeds the supervision monitor."""
        with self.timer("encode"):
            query_BD = self.encoder(windows.context, "query")
        candidates, continuation_sim_BB = None, None
        if self.objective.needs_loglik:
            with self.timer("propose"):
                candidate_ids_BK = self.candidates.propose(windows, query_BD.detach(), self.global_step)
            with self.timer("score"):
                loglik_BK = self.scorer.loglik(self.store, windows.window_ids_B, candidate_ids_BK).to(self.device)
            with self.timer("encode"):
                candidates = self._compare(windows, query_BD, candidate_ids_BK, loglik_BK)
        if self.objective.needs_continuation:
            with self.timer("encode"):
                continuation_sim_BB = query_BD @ self.encoder(windows.continuation, "passage").T
        same_document_BB = windows.document_ids_B[:, None] == windows.document_ids_B
        loss = self.objective(Evidence(same_document_BB, candidates, continuation_sim_BB))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(windows))
        outputs = {"loss": loss}
        if candidates is not None:
            outputs |= {"candidate_ids_BK": candidate_ids_BK} | self._supervision(windows, candidates)
        return outputs

    def _compare(
        self, windows: WindowBatch, query_BD: Tensor, candidate_ids_BK: Tensor, loglik_BK: Tensor
    ) -> Candidates:
        """Similarities with every distinct candidate of the step, from the current encoder: never the index's."""
        distinct_U, columns_BK = torch.unique(candidate_ids_BK, return_inverse=True)
        passages = self.store.passage_batch(distinct_U, self.encoder.max_tokens).to(self.device)
        sim_BU = query_BD @ self.encoder(passages, "passage").T
        documents_U = torch.from_numpy(self.store.passage_documents[distinct_U.numpy()]).to(self.device)
        columns_BK = columns_BK.to(self.device)
        # A window's own candidates stay, whatever the exclusion rule let through.
        allowed_BU = (documents_U != windows.document_ids_B[:, None]).scatter(1, columns_BK, True)
        return Candidates(sim_BU, columns_BK, allowed_BU, loglik_BK)

    def _supervision(self, windows: WindowBatch, candidates: Candidates) -> dict[str, Tensor]:
        """Log how informative the LM is and how well the retriever follows it; both beliefs, for the monitor."""
        posterior_BK = torch.softmax(candidates.loglik_BK / self.objective.lm_temperature, dim=1)
        retriever_BK = torch.softmax(candidates.sim_BK.detach() / self.objective.temperature, dim=1)
        ranges = self.store.windows["tokens"][windows.window_ids_B.cpu().numpy(), SCORER]
        target_tokens_B = torch.from_numpy(ranges[:, 2] - ranges[:, 1]).to(self.device)
        best_B = posterior_BK.argmax(1)
        best_loglik_B = candidates.loglik_BK.gather(1, best_B[:, None])[:, 0]
        gain_B = (best_loglik_B - candidates.loglik_BK.mean(1)) / target_tokens_B
        metrics = {
            "train/posterior_entropy": torch.special.entr(posterior_BK).sum(1).mean(),
            "train/retriever_entropy": torch.special.entr(retriever_BK).sum(1).mean(),
            "train/agreement": (best_B == retriever_BK.argmax(1)).float().mean(),
            "train/gain": gain_B.mean(),
        }
        self.log_dict(metrics, batch_size=len(windows))
        return {"posterior_BK": posterior_BK, "retriever_BK": retriever_BK}

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.encoder.parameters())
        schedule = self.make_schedule(optimizer, max_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        before, known = time.perf_counter(), sum(self.timer.seconds.values())
        super().optimizer_step(*args, **kwargs)
        inside = sum(self.timer.seconds.values()) - known
        self.timer.seconds["step"] += time.perf_counter() - before - inside

    def on_train_start(self) -> None:
        self.encoder.train()
        self._windows = 0
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
