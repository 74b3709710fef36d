"""What the run's language model says about a document: how much better it predicts the query with it than without."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dream.evaluation.reranking import LanguageModelRanker
from dream.evaluation.searcher import Searcher
from dream.runs.load import open_config
from dream.scorers.pretraining.scratch import ScratchScorer
from dream.utils.errors import require
from dream.utils.logging import get_logger

log = get_logger(__name__)

Gain = Callable[[str, Sequence[int]], list[float]]  # (query, document rows) -> nats per token of the query


def open_gain(searcher: Searcher, run: Path, trust: Sequence[str] = (), data: str | Path | None = None) -> Gain:
    """The gain by the language model that the run was trained with. Raises as `open_language_model`."""
    ranker = open_language_model(searcher, run, trust, data)

    def gain(query: str, rows: Sequence[int]) -> list[float]:
        return ranker.gain(query, np.array(rows, dtype=np.int64)).tolist() if rows else []

    return gain


def open_language_model(
    searcher: Searcher, run: Path, trust: Sequence[str] = (), data: str | Path | None = None
) -> LanguageModelRanker:
    """Load the language model that the run was trained with.

    Raises:
        ConfigError: it is not there, e.g. because the objective needs none.
    """
    config = open_config(run, trust, data)
    log.info("Opening the language model of the run")
    settings = OmegaConf.merge(config.scorer, {"scoring": {"compile": False}})  # the first query would wait a minute
    scorer = instantiate(settings, corpus=instantiate(config.corpus))
    untrained = isinstance(scorer, ScratchScorer) and not scorer.is_trained(searcher.store)
    require(not untrained, "gain", True, "the language model of this run is not there: its objective needed none, or "
            "the data folder has moved")  # fmt: skip
    scorer.load(searcher.store)
    return LanguageModelRanker(scorer, searcher.store)
