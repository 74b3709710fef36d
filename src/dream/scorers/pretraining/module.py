"""Trains a small causal language model from random weights.

Shapes: B sequences of a step, T tokens, R rows whose logits are kept, V vocabulary.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dream.scorers.compilation import wants_compilation
from dream.scorers.pretraining.curriculum import SHARES, SPAN_TOKENS, CopyCurriculum
from dream.utils.checkpoints import GracefulStop, SafeCheckpointIO, verify_checkpoint
from dream.utils.errors import DamageError, DreamError, require
from dream.utils.logging import get_logger, quiet_lightning
from dream.utils.lr_schedule import warmup_then_linear
from dream.utils.runtime import progress, training_precision

log = get_logger(__name__)

LOG_EVERY_N_STEPS = 10
CHECKPOINT_EVERY_N_STEPS = 100
CLIP_NORM = 1.0
WARMUP_FRACTION = 0.05  # share of the steps
WEIGHT_DECAY = 0.1


@dataclass
class Training:
    """Settings of the pretraining: the fields of `scorer.training` in the YAML.

    Args:
        max_steps: optimizer steps.
        batch_size: sequences of a step.
        learning_rate: maximum of the learning rate.
        multi_passage_fraction: share of the steps with multi-passage sequences: see `CopyCurriculum`.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_steps: int
    batch_size: int
    learning_rate: float
    multi_passage_fraction: float = 0.1

    def __post_init__(self) -> None:
        key = "scorer.training"
        require(self.max_steps > 0, f"{key}.max_steps", self.max_steps, "at least 1 step")
        require(self.learning_rate > 0, f"{key}.learning_rate", self.learning_rate, "above 0")

    def description(self) -> dict[str, Any]:
        """Everything that the weights depend on."""
        return vars(self) | {"warmup": WARMUP_FRACTION, "decay": WEIGHT_DECAY, "shares": SHARES, "spans": SPAN_TOKENS}

    @property
    def checkpoint_every_n_steps(self) -> int:
        """Steps between two checkpoints. A crash loses at most this number of steps."""
        return max(1, min(CHECKPOINT_EVERY_N_STEPS, self.max_steps // 3))


class LanguageModelModule(L.LightningModule):
    """Trains a model with the next-token cross-entropy (nats per token) of the windows' tokens.

    Tokens of passages have no loss, because the scorer only scores tokens of windows. The optimizer is AdamW, with
    linear warm-up and linear decay to 0.

    Args:
        model: a causal language model of transformers.
        curriculum: the training sequences.
        training: settings.
        compiled: whether to compile the loss: `auto`, true or false.
    """

    def __init__(self, model: Any, curriculum: CopyCurriculum, training: Training, compiled: str | bool) -> None:
        super().__init__()
        self.model, self.curriculum, self.training_settings, self.compiled = model, curriculum, training, compiled
        self.loss = self._loss

    def _loss(self, ids_BT: Tensor) -> Tensor:
        window, length = self.curriculum.window_tokens, ids_BT.shape[1]
        rows_R = torch.arange(length - window - 1, length - 1, device=ids_BT.device)
        logits_BRV = self.model(input_ids=ids_BT, logits_to_keep=rows_R, use_cache=False).logits
        return F.cross_entropy(logits_BRV.flatten(0, 1).float(), ids_BT[:, -window:].flatten())

    def train_dataloader(self) -> DataLoader:
        # Lightning calls this after it has restored the step, so a resumed training continues with the next sequence.
        self.curriculum.start = self.trainer.global_step * self.curriculum.batch_size
        return DataLoader(self.curriculum, batch_size=None)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        settings = self.training_settings
        matrices = [weight for weight in self.model.parameters() if weight.ndim >= 2]
        vectors = [weight for weight in self.model.parameters() if weight.ndim < 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
        schedule = warmup_then_linear(optimizer, settings.max_steps, int(WARMUP_FRACTION * settings.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), CLIP_NORM)  # Lightning refuses to clip for the fused AdamW

    def on_train_start(self) -> None:
        self.model.train()
        if wants_compilation("scorer.scoring.compile", self.compiled, self.device):
            self.loss = torch.compile(self._loss, dynamic=False)
        self.tokens = self.curriculum.batch_size * self.curriculum.length
        total, done = (steps * self.tokens for steps in (self.training_settings.max_steps, self.global_step))
        self.bar = progress(total=total, initial=done, unit="token", unit_scale=True, desc="pretraining")
        self._clock, self._clock_step = time.perf_counter(), self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.update(self.tokens)
        if self.global_step % LOG_EVERY_N_STEPS:
            return
        now = time.perf_counter()
        rate = (self.global_step - self._clock_step) * self.tokens / (now - self._clock)
        self._clock, self._clock_step = now, self.global_step
        self.log_dict({"perf/tokens_per_second": rate, "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        self.bar.set_postfix(loss=f"{float(outputs['loss']):.3f}", refresh=False)

    def on_train_end(self) -> None:
        self.bar.close()


def train(
    model: Any, curriculum: CopyCurriculum, training: Training, folder: Path, compiled: str | bool, device: torch.device
) -> None:
    """Train `model` in place. If the folder has a checkpoint of an interrupted training, resume it.

    Args:
        model: a causal language model of transformers.
        curriculum: the training sequences.
        training: settings.
        folder: folder for logs and checkpoints.
        compiled: whether to compile the loss: `auto`, true or false.
        device: where to train.

    Raises:
        DreamError: the training was interrupted.
    """
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    quiet_lightning()
    module = LanguageModelModule(model, curriculum, training, compiled)
    checkpoints = ModelCheckpoint(
        folder, filename="last", every_n_train_steps=training.checkpoint_every_n_steps, enable_version_counter=False
    )
    last = folder / "last.ckpt"
    stop = GracefulStop(last)
    trainer = L.Trainer(
        max_steps=training.max_steps,
        max_epochs=-1,
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=training_precision(device.type),
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        log_every_n_steps=LOG_EVERY_N_STEPS,
        callbacks=[stop.own_signals, checkpoints, stop],
        plugins=[SafeCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, ckpt_path=_usable(last), weights_only=True)
    if trainer.global_step < training.max_steps:
        raise DreamError("the language model's training was interrupted; the same command continues it")


def _usable(checkpoint: Path) -> Path | None:
    """The checkpoint if it exists. A damaged checkpoint is logged and deleted."""
    try:
        if checkpoint.exists():
            verify_checkpoint(checkpoint)
            return checkpoint
    except DamageError:
        log.warning(f"{checkpoint}: damaged: training the language model from the start")
        checkpoint.unlink()
    return None
