"""Gives the run's config and its final figures to every logger."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dream.evaluation.results import HEADLINE
from dream.runs.layout import is_in_run

LOSS = "train/loss"
METRICS = "metrics"  # key in a checkpoint


class HyperParameters(L.Callback):
    """Logs the config at the start of a run, and `final/…` at its end: last loss and final report.

    TensorBoard shows both in its tab HPARAMS, where each run is a row. It takes them at the end only.

    A checkpoint has the last value of each metric, for a run that is resumed after its last step. A run that starts
    from the checkpoint of another run takes none of them over.

    Order: after `FinalReport`, whose metrics it reads.

    Args:
        config: the run's config as plain containers, without secrets.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.params = flat(config)
        self._resumed: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[METRICS] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        resumed = is_in_run(Path(trainer.ckpt_path or "."), Path(trainer.default_root_dir))
        self._resumed = checkpoint.get(METRICS, {}) if resumed else {}

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(self.params))

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        missing = {name: value for name, value in self._resumed.items() if name not in trainer.callback_metrics}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in missing.items()})
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        final = {f"final/{name}": value for name, value in found.items()
                 if name == LOSS or (name.count("/") == 1 and name.split("/")[1] in HEADLINE)}  # fmt: skip
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(self.params), final, step=trainer.global_step)
            else:
                logger.log_metrics(final, step=trainer.global_step)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dictionaries; lists as text."""
    if isinstance(node, Mapping):
        pairs = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
        return {key: value for part in pairs for key, value in part.items()}
    return {prefix: node if isinstance(node, bool | int | float | str) else str(node)}
