"""What all formats share: the run to export, and how a format is written and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from dream.corpora.base import Corpus
from dream.encoders.base import Side
from dream.encoders.hf import HFEncoder
from dream.encoders.static import StaticEncoder
from dream.runs.load import FinishedRun
from dream.utils.errors import ConfigError, require_installed

ADAPTERS = ("merged", "kept")  # into the weights, or beside the base model
Embed = Callable[[list[str], Side], np.ndarray]  # (B texts, side) -> embedding_BD, float32


@dataclass(frozen=True)
class Checks:
    """How much of the corpus an export is checked on.

    Args:
        texts: passages whose vectors are compared.
        split: labelled split whose queries are compared, if the corpus has it.
        queries: maximum number of queries.
        passages: maximum number of passages that are ranked, for to=onnx with weights=int8.
    """

    texts: int
    split: str
    queries: int
    passages: int


@dataclass(frozen=True)
class Job:
    """A finished run, and the settings of its export.

    Args:
        run: the opened run.
        config: the run's config as plain containers.
        folder: the run's folder.
        logs: folder of all runs and evaluations.
        checks: see `Checks`.
        weights: float32 or int8.
        adapter: merged or kept: see `ADAPTERS`.
        licence: licence of the model, as the Hugging Face hub writes it; None: unknown.
        repository: where the model will be published, for its card; None: nowhere.
    """

    run: FinishedRun
    config: dict[str, Any]
    folder: Path
    logs: Path
    checks: Checks
    weights: str
    adapter: str
    licence: str | None
    repository: str | None = None

    @cached_property
    def corpus(self) -> Corpus:
        """The run's corpus, for its labels."""
        return instantiate(self.config["corpus"])

    @property
    def encoder(self) -> StaticEncoder | HFEncoder:
        """The run's encoder. Raises ConfigError if it is of another kind: formats must know what it computes."""
        encoder = self.run.encoder
        if not isinstance(encoder, StaticEncoder | HFEncoder):
            raise ConfigError("encoder", type(encoder).__name__, "only static and hf can be exported; to=faiss and "
                              "to=parquet write the vectors of any encoder")  # fmt: skip
        return encoder


class Format:
    """One value of `to`.

    Attributes:
        packages: importable packages that it needs.
        extra: the extra of this project that installs them.
        int8: whether it has `weights=int8`.
        adapters: whether it has `adapter=kept`.
    """

    packages: tuple[str, ...] = ()
    extra = ""
    int8 = False
    adapters = False

    def require_installed(self, name: str) -> None:
        """Raise ConfigError if a package is missing."""
        require_installed(self.packages, self.extra, "to", name)

    def write(self, job: Job, folder: Path) -> None:
        """Write the export into an existing empty folder.

        Raises:
            ConfigError: this encoder cannot be written in this format.
        """
        raise NotImplementedError

    def check(self, job: Job, folder: Path) -> dict[str, Any]:
        """Open the written folder and compare it with the run. Returns what was compared, as JSON values.

        Raises:
            DataError: it differs from the run.
        """
        raise NotImplementedError
