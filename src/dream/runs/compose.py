"""Composes the training config without a command line, for notebooks and scripts."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from dream.runs.paths import make_absolute
from dream.utils.runtime import CONFIG_DIR


def compose_run(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The config of `dream-train` with these overrides, and a new run folder.

    Args:
        overrides: as on the command line.
        config_dir: an additional folder of configs, as with --config-dir.
    """
    search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", [*search, *overrides])
    if not any(override.lstrip("+").startswith("paths.run=") for override in overrides):
        cfg.paths.run = str(Path(cfg.paths.logs) / cfg.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    make_absolute(cfg)
    return cfg
