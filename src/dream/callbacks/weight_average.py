"""Averages the trained weights with those before training, so that a published encoder forgets less."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from dream.encoders.sharded import divided_like, own_part
from dream.utils.errors import require
from dream.utils.logging import get_logger

log = get_logger(__name__)

KEY = "callbacks.weight_average.untrained"


class WeightAverage(L.Callback):
    """After step `trainer.max_steps`: weight = untrained · (weight before training) + (1 - untrained) · weight.

    Source: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, eq. 1). Of an adapter, its own weights are averaged.

    Checkpoints before the last step contain the trained weights, so a resumed run ends with the same average. A run
    that is trained further starts from the average, and is averaged again at its new end.

    Order: before all callbacks that use the weights; `build_trainer` puts it first.

    Args:
        untrained: share of the weights before training, 0 to 1.

    Raises:
        ConfigError: the share is out of its range.
    """

    def __init__(self, untrained: float) -> None:
        require(0 <= untrained <= 1, KEY, untrained, "from 0 (only trained weights) to 1 (weights before training)")
        self.untrained = untrained
        self.before: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Keep a copy of the weights. Lightning restores a checkpoint after this hook."""
        self.before = {name: weight.detach().clone() for name, weight in _trained(pl_module.encoder)}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        for name, weight in _trained(pl_module.encoder):
            own_part(weight).lerp_(own_part(divided_like(self.before[name], weight)), self.untrained)
        log.info(f"The encoder's weights are now {1 - self.untrained:.2f} · trained + {self.untrained:.2f} · untrained")

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step < trainer.max_steps:
            log.warning(f"{KEY}={self.untrained}: the run ended before step trainer.max_steps={trainer.max_steps:,}, "
                        "so its weights are not averaged")  # fmt: skip


def _trained(encoder: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in encoder.named_parameters() if weight.requires_grad]
