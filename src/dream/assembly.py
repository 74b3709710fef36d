"""The one place where a config becomes objects, in the order in which they need each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from dream.corpora.base import Corpus
from dream.datamodule import WindowDataModule
from dream.encoders.base import Encoder
from dream.errors import require
from dream.indexes.generation import IndexHandle
from dream.module import RetrieverModule
from dream.store.store import Store


@dataclass
class Parts:
    """Text flows corpus → store → windows; the store needs both tokenizers, the weights need the store."""

    corpus: Corpus
    scorer: Any
    encoder: Encoder
    data: WindowDataModule
    store: Store
    objective: Any = None
    candidates: Any = None


def assemble(cfg: DictConfig) -> Parts:
    """Corpus, tokenizers, store (built where missing), without any weights yet.

    What costs nothing to make comes first, so that an impossible value is told before a corpus is prepared.
    """
    objective, candidates = instantiate(cfg.get("objective")), instantiate(cfg.get("candidates"))
    if objective and objective.needs_candidates:
        learns = candidates.scored_windows != 0 or objective.needs_continuation
        remedy = "no window has a target; score some, or give objective.continuation a share"
        require(learns, "candidates.scored_windows", candidates.scored_windows, remedy)
    corpus = instantiate(cfg.corpus)
    scorer = instantiate(cfg.scorer, corpus=corpus)
    encoder = instantiate(cfg.encoder, scorer=scorer)
    data = instantiate(
        cfg.data,
        corpus=corpus,
        encoder_tokenizer=encoder.tokenizer,
        scorer_tokenizer=scorer.tokenizer,
        max_query_tokens=encoder.max_tokens,
    )
    return Parts(corpus, scorer, encoder, data, data.store, objective, candidates)


def retriever(cfg: DictConfig, parts: Parts) -> RetrieverModule:
    """The module, with the weights made or loaded: the scorer's first, which the encoder may start from."""
    objective, candidates = parts.objective, parts.candidates
    unfit = objective.needs_candidates and not parts.data.has_targets
    require(not unfit, "objective", cfg.objective._target_, "needs targets for the language model, and labelled pairs "
            "have none; take objective=info_nce")  # fmt: skip
    index = IndexHandle(instantiate(cfg.index), Path(cfg.paths.run) / "index")
    if objective.needs_candidates:
        parts.scorer.load(parts.store)
        candidates.prepare(parts.store, index)
        objective.prepare(parts.scorer, parts.store, candidates.k)
    parts.encoder.load(parts.store, parts.scorer)
    return RetrieverModule(
        encoder=parts.encoder,
        scorer=parts.scorer,
        objective=objective,
        candidates=candidates,
        index=index,
        store=parts.store,
        optimizer=instantiate(cfg.optimizer.optimizer),
        schedule=instantiate(cfg.optimizer.schedule),
        seed=cfg.seed,
    )
