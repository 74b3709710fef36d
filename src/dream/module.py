"""The LightningModule: encode, propose candidates, score them, compute the loss, log."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from dream.batch import WindowBatch
from dream.encoders.base import Encoder, cosines
from dream.encoders.sharded import ShardedEncoder
from dream.encoders.untrained import UntrainedEncoder
from dream.objectives.base import Candidates, LossInputs, LossOutput, Objective
from dream.runs.agreement import identity, refuse_other
from dream.scorers.base import CausalScorer
from dream.scorers.candidate_scores import CandidateScores
from dream.store.store import Store
from dream.utils import ranks
from dream.utils.optimizer_settings import OptimizerSettings
from dream.utils.timing import Timer

RANK_SEED = 1 << 40  # distance of the seeds of two ranks
UNIFORM = 0.99  # a posterior whose entropy is above this fraction of ln K prefers no candidate


class RetrieverModule(L.LightningModule):
    """Trains an encoder with an objective. The frozen scorer is a plain attribute, so checkpoints do not contain it.

    Callbacks refresh the index, evaluate, log times and check for inf and nan. They read `outputs`, the tensors that
    the last training step returned:

    - always `loss` and `query_BD`, the embedded contexts
    - with candidates also `candidate_ids_SK`, `sim_SK` (cosine) and `retriever_SK` (softmax of sim_SK / temperature)
    - with a posterior also `loglik_SK` (nats), `posterior_SK` and `gain_S` (nats per target token)

    Args:
        encoder: the only part that is trained.
        scorer: the frozen language model.
        objective: turns similarities and log-likelihoods into a loss.
        candidates: proposes K passages for each window.
        index: the current index snapshot, for candidates and evaluation.
        store: passages and windows.
        optimizer: creates the optimizer from parameters.
        schedule: creates the learning-rate schedule from (optimizer, max_steps=...).
        seed: seed of dropout.
    """

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
        self.outputs: dict[str, Tensor] = {}  # tensors of the last training step
        self.timer = Timer()
        self.sharded: ShardedEncoder | None = None
        self.belongs_to = identity(store.hash, encoder)  # now, because FSDP2 changes the encoder's class
        self.untrained = UntrainedEncoder(encoder, store) if objective.needs_untrained else None

    def training_step(self, batch: WindowBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss and the tensors that callbacks read."""
        with self.timer("encode"):
            query_BD = self.encoder(batch.context, "query")
        inputs = LossInputs(
            same_document_BA=self._same_document(batch),
            candidates=self._score_candidates(batch, query_BD),
            continuation_sim_BA=self._score_continuations(batch, query_BD),
        )
        output = self.objective(inputs)
        self.outputs, metrics = {"loss": output.loss, "query_BD": query_BD.detach()}, {"train/loss": output.loss}
        if inputs.candidates is not None and len(inputs.candidates.columns_SK):
            outputs, more = self._compare(batch, inputs.candidates, output)
            self.outputs |= outputs
            metrics |= more
        metrics = ranks.mean(metrics)
        self.log("train/loss", metrics.pop("train/loss"), prog_bar=True, batch_size=len(batch))
        self.log_dict(metrics, batch_size=len(batch))
        return self.outputs

    def _same_document(self, batch: WindowBatch) -> Tensor:
        """same_document_BA: also true for documents with near copies, if the candidates know them."""
        copies = getattr(self.candidates, "copies", None)
        documents_B, documents_A = batch.document_ids_B, ranks.gather(batch.document_ids_B)
        if copies is None:
            return documents_B[:, None] == documents_A
        return torch.from_numpy(copies.between(documents_B.cpu().numpy(), documents_A.cpu().numpy())).to(self.device)

    def _negatives(self, batch: WindowBatch, distinct_U: Tensor) -> Tensor:
        """negative_BU: passages that are neither of the window's document nor near copies of its passages."""
        ids_U, documents_B = distinct_U.cpu().numpy(), batch.document_ids_B.cpu().numpy()
        own_BU = self.store.passage_documents[ids_U] == documents_B[:, None]
        if self.candidates.copies is not None:
            own_BU |= self.candidates.copies.of_documents(documents_B, ids_U)
        return torch.from_numpy(~own_BU).to(self.device)

    def _score_candidates(self, batch: WindowBatch, query_BD: Tensor) -> Candidates | None:
        """Similarities with all distinct candidates of the step, computed by the current encoder, not by the index."""
        if not self.objective.needs_candidates:
            return None
        scored, candidate_ids_PK = self._propose(batch, query_BD)
        candidate_ids_SK = candidate_ids_PK[: len(scored)]
        scores = CandidateScores(self.scorer, self.store, scored.window_ids_B, candidate_ids_SK, self.timer)
        with self.timer("encode"):
            distinct_U, columns_RSK = self._distinct(candidate_ids_PK, len(scored))
            sim_BU = cosines(query_BD, self._embed_passages(distinct_U))
        columns_SK = columns_RSK[0]
        negative_BU = self._negatives(batch, distinct_U)
        # The candidates of a scored window share its posterior: they may come from its own document.
        allowed_BU = negative_BU.clone()
        allowed_BU[: len(scored)].scatter_(1, columns_SK, True)
        untrained_sim_SK = self.untrained.similarities(scored.context, candidate_ids_SK) if self.untrained else None
        return Candidates(
            sim_BU, columns_SK, allowed_BU, negative_BU, distinct_U, columns_RSK.unique(), scores, untrained_sim_SK
        )

    def _propose(self, batch: WindowBatch, query_BD: Tensor) -> tuple[WindowBatch, Tensor]:
        """(scored windows, candidate_ids_PK): the first windows of a batch are scored, the first P have candidates."""
        world = ranks.world()
        scored, proposed = (batch.head(count // world) for count in self.candidates.counts(len(batch) * world))
        with self.timer("propose"):
            query_PD = query_BD[: len(proposed)].detach()
            return scored, self.candidates.propose(proposed, query_PD, self.global_step, len(scored))

    def _distinct(self, candidate_ids_PK: Tensor, scored: int) -> tuple[Tensor, Tensor]:
        """(distinct_U, columns_RSK): the distinct candidates of all R ranks' windows, and where those of the scored
        windows are among them. This rank is the first of R, because `gather` puts its own rows first."""
        distinct_U, columns = torch.unique(ranks.gather(candidate_ids_PK), return_inverse=True)
        columns_RPK = columns.to(self.device).unflatten(0, (ranks.world(), len(candidate_ids_PK)))
        return distinct_U, columns_RPK[:, :scored]

    def _embed_passages(self, distinct_U: Tensor) -> Tensor:
        """passage_UD, with gradient. Each rank embeds an equal share of the passages; the last one may repeat some."""
        world, count = ranks.world(), len(distinct_U)
        share = -(-count // world)
        own_U = distinct_U[torch.arange(ranks.rank() * share, (ranks.rank() + 1) * share).clamp(max=count - 1)]
        passages = self.store.passage_batch(own_U, self.encoder.max_tokens, training=True).to(self.device)
        return ranks.gather(self.encoder(passages, "passage"), own_first=False)[:count]

    def _score_continuations(self, batch: WindowBatch, query_BD: Tensor) -> Tensor | None:
        """continuation_sim_BA: cosine of each context with each continuation of the step."""
        if not self.objective.needs_continuation:
            return None
        with self.timer("encode"):
            return cosines(query_BD, ranks.gather(self.encoder(batch.continuation, "passage")))

    def _compare(
        self, batch: WindowBatch, candidates: Candidates, output: LossOutput
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(both distributions; metrics of how informative the LM is, and of how well the retriever agrees with it)

        Without per-candidate log-likelihoods there is no posterior. `gain_S` is the log-likelihood of the posterior's
        best candidate minus the mean over the candidates, in nats per target token.
        """
        sim_SK, loglik_SK = candidates.sim_SK.detach(), output.candidate_loglik_SK
        scored = len(sim_SK)
        retriever_SK = torch.softmax(sim_SK / self.objective.temperature, dim=1)
        metrics = {"train/retriever_entropy": torch.special.entr(retriever_SK).sum(1).mean()}
        ids_SK = candidates.scores.candidate_ids_SK
        outputs = {"candidate_ids_SK": ids_SK, "sim_SK": sim_SK, "retriever_SK": retriever_SK}
        if isinstance(output.weights, Tensor):
            metrics["train/window_weight"] = output.weights.mean()
        if loglik_SK is None:
            return outputs, metrics
        posterior_SK = torch.softmax(loglik_SK / self.objective.lm_temperature, dim=1)
        counts_S = self.store.scored_counts(batch.window_ids_B[:scored].cpu().numpy())
        best_S = posterior_SK.argmax(1)
        best_loglik_S = loglik_SK.gather(1, best_S[:, None])[:, 0]
        gain_S = (best_loglik_S - loglik_SK.mean(1)) / torch.from_numpy(counts_S).to(self.device)
        entropy_S = torch.special.entr(posterior_SK).sum(1)
        metrics |= {
            "train/posterior_entropy": entropy_S.mean(),
            "train/uniform_posteriors": (entropy_S > UNIFORM * math.log(posterior_SK.shape[1])).float().mean(),
            "train/agreement": (best_S == retriever_SK.argmax(1)).float().mean(),
            "train/gain": gain_S.mean(),
        }
        return outputs | {"loglik_SK": loglik_SK, "gain_S": gain_S, "posterior_SK": posterior_SK}, metrics

    def configure_model(self) -> None:
        """With `trainer=fsdp`, divide the encoder's weights over the ranks. Lightning calls this after `setup`."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and self.sharded is None:
            self.sharded = ShardedEncoder(self.encoder, strategy.root_device)

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.encoder.parameters())
        # With precision=16-mixed, a fused optimizer divides the gradients by the loss scale inside its step, after
        # logging and clipping. If this flag is False, Lightning divides them before logging and clipping.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        schedule = self.make_schedule(optimizer, max_steps=self.trainer.max_steps)
        self.optimizer_settings = OptimizerSettings(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        if self.scorer.device.type != self.device.type:  # Lightning moves only submodules
            self.scorer.to(self.device)
        if self.untrained:
            self.untrained.to(self.device)

    def on_train_start(self) -> None:
        self.encoder.train()
        self.optimizer_settings.apply()  # replaces the settings that the checkpoint has restored

    def on_train_batch_start(self, batch: WindowBatch, batch_idx: int) -> None:
        # Dropout depends only on the seed, the batch and the rank, so a resumed run repeats it.
        torch.manual_seed(self.seed * 1_000_003 + batch.consumed + ranks.rank() * RANK_SEED)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["belongs_to"] = self.belongs_to

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other(checkpoint.get("belongs_to", {}), self.belongs_to)
