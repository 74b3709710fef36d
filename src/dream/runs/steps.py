"""How many optimizer steps a run has."""

import math

import lightning as L
from omegaconf import DictConfig

from dream.data.window_datamodule import WindowDataModule
from dream.utils.logging import get_logger

log = get_logger(__name__)

AUTO = "auto"
PASSES = 1.5  # over the windows of the corpus; chosen on dev splits (RESULTS.md)
MOST_STEPS = 500


def most_steps(trainer: DictConfig) -> int:
    """`trainer.max_steps`, or the most steps that `auto` may choose: what is known before the corpus is read."""
    return MOST_STEPS if trainer.max_steps == AUTO else trainer.max_steps


def steps_of(trainer: DictConfig, data: WindowDataModule) -> int:
    """`trainer.max_steps`. With `auto`, `PASSES` passes over the windows, and at most `MOST_STEPS` steps.

    A small corpus needs few steps: with more, the encoder learns its windows by heart, and finds less.

    Args:
        trainer: section `trainer` of the config.
        data: the windows. Their store is opened or built.
    """
    if trainer.max_steps != AUTO:
        return trainer.max_steps
    windows_of_a_step = data.batch_size * trainer.get("accumulate_grad_batches", 1)
    return min(MOST_STEPS, math.ceil(PASSES * data.distinct / windows_of_a_step))


def set_steps(trainer: L.Trainer, settings: DictConfig, data: WindowDataModule) -> None:
    """With `auto`, tell the trainer its steps. It is built before the corpus is read, so that mistakes show early."""
    if settings.max_steps == AUTO:
        trainer.fit_loop.epoch_loop.max_steps = steps_of(settings, data)
        log.info(f"{trainer.max_steps:,} steps: {PASSES} passes over the corpus's {data.distinct:,} windows, but at "
                 f"most {MOST_STEPS} steps (trainer.max_steps=NUMBER changes it)")  # fmt: skip
