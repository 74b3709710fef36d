"""DREAM: dense retrievers trained without labels.

import dream

run = dream.train(["experiment=quickstart"])      # the run's folder
retriever = dream.load(run)                       # or dream.load("logs/latest")
retriever.search("read a file line by line", k=10)
retriever.encode_queries(["read a file"])         # float32 array, a unit vector a row
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dream.utils.errors import DreamError

if TYPE_CHECKING:
    import torch

    from dream.evaluation.searcher import Searcher

__all__ = ["DreamError", "__version__", "load", "train"]
__version__ = "0.2.0"


def load(
    run: "str | Path" = "logs/latest",
    device: "str | torch.device" = "cpu",
    trust: Sequence[str] = (),
    data: "str | Path | None" = None,
) -> "Searcher":
    """Open a finished run for searching and encoding.

    Args:
        run: the run's folder.
        device: the device that the encoder runs on.
        trust: packages, besides dream, whose classes the run's config may name.
        data: the data folder, if it was moved after the run.

    Raises:
        ConfigError: the folder contains no finished run.
        DataError: a file of the run is missing or damaged.
    """
    import dream.utils.runtime  # noqa: F401  before torch
    from dream.evaluation.searcher import Searcher

    return Searcher(run, device, trust, data)


def train(overrides: Sequence[str] = (), config_dir: "str | Path | None" = None) -> Path:
    """Train as `dream-train` does, from a notebook or script. Returns the run's folder.

    Args:
        overrides: as on the command line, e.g. ["experiment=quickstart", "trainer.max_steps=100"].
        config_dir: a folder of your own configs, as with --config-dir.

    Raises:
        DreamError: a mistake that the user can fix, in one line.
    """
    import dream.utils.runtime  # noqa: F401  before torch
    from dream.commands.app import mistakes_raised
    from dream.commands.train import train
    from dream.runs.compose import compose_run

    with mistakes_raised("train"):
        cfg = compose_run(overrides, config_dir)
        train(cfg)
    return Path(cfg.paths.run)
