"""From config to objects: the only place, besides a run's session, that reads the training config."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig

from dream.corpora.base import Corpus
from dream.data.window_datamodule import WindowDataModule
from dream.encoders.base import Encoder
from dream.indexes.snapshot import IndexHandle
from dream.module import RetrieverModule
from dream.runs.layout import INDEX, LAST
from dream.store.store import Store
from dream.utils.checkpoints import GracefulStop, SafeCheckpointIO
from dream.utils.errors import require
from dream.utils.logging import get_logger

log = get_logger(__name__)

NEED_LABELS = ("evaluation", "best_checkpoint")  # callbacks that rank the labelled queries of the dev split


@dataclass
class TextComponents:
    """What needs no weights: corpus → store → windows, and both tokenizers."""

    corpus: Corpus
    scorer: Any
    encoder: Encoder
    data: WindowDataModule

    @property
    def store(self) -> Store:
        """Opened, or built, on first use."""
        return self.data.store


@dataclass
class Components(TextComponents):
    """All parts of a training, with their weights."""

    module: RetrieverModule


def build_text(cfg: DictConfig) -> TextComponents:
    """Corpus, tokenizers and data module. The scorer's and the encoder's weights are made or loaded later."""
    corpus = instantiate(cfg.corpus)
    scorer = instantiate(cfg.scorer, corpus=corpus)
    encoder = instantiate(cfg.encoder)
    encoder.adopt_tokenizer(scorer.tokenizer)
    data = instantiate(
        cfg.data,
        corpus=corpus,
        encoder_tokenizer=encoder.tokenizer,
        scorer_tokenizer=scorer.tokenizer,
        max_query_tokens=encoder.max_tokens,
    )
    return TextComponents(corpus, scorer, encoder, data)


def build_components(cfg: DictConfig, run_folder: Path) -> Components:
    """Everything that is trained or used in training. Cheap parts come first, so that bad values are found early."""
    objective, candidates = instantiate(cfg.objective), instantiate(cfg.candidates)
    if objective.needs_candidates:
        learns = candidates.scored_windows != 0 or objective.needs_continuation
        remedy = "no window has a target; score some windows, or set objective.continuation above 0"
        require(learns, "candidates.scored_windows", candidates.scored_windows, remedy)
    text = build_text(cfg)
    unfit = objective.needs_candidates and not text.data.has_targets
    require(not unfit, "objective", cfg.objective._target_, "needs targets for the language model, but labelled pairs "
            "have none; choose objective=info_nce")  # fmt: skip
    index = IndexHandle(instantiate(cfg.index), run_folder / INDEX)
    load_scorer = _loader(text.scorer, text.store)
    if objective.needs_candidates:
        scorer = load_scorer()
        candidates.prepare(text.store, index)
        objective.prepare(scorer, text.store, candidates.k)
    text.encoder.initialize(text.store, lambda: load_scorer().token_embeddings())
    module = RetrieverModule(
        encoder=text.encoder,
        scorer=text.scorer,
        objective=objective,
        candidates=candidates,
        index=index,
        store=text.store,
        optimizer=instantiate(cfg.optimizer.optimizer),
        schedule=instantiate(cfg.optimizer.schedule),
        seed=cfg.seed,
    )
    return Components(text.corpus, text.scorer, text.encoder, text.data, module)


def build_trainer(cfg: DictConfig, components: Components) -> L.Trainer:
    """The Trainer with its callbacks. Those that need labelled dev queries are left out if there are none."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    callbacks = dict(cfg.callbacks or {})
    corpus = components.corpus
    if cfg.evaluation.dev_split not in corpus.splits():
        split = cfg.evaluation.dev_split
        log.info(f"Corpus {corpus.name} has no labelled split {split!r}: training without evaluation")
        callbacks = {name: callback for name, callback in callbacks.items() if name not in NEED_LABELS}
    stop = GracefulStop(Path(cfg.paths.run) / LAST)
    return instantiate(
        cfg.trainer,
        callbacks=[*(instantiate(callback) for callback in callbacks.values() if callback), stop],
        logger=instantiate(cfg.logger),
        plugins=[SafeCheckpointIO()],
        default_root_dir=cfg.paths.run,
        max_epochs=-1,  # runs are counted in steps: the stream of windows has no end
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the stream gives each rank its own windows
        enable_model_summary=False,
    )


def _loader(scorer: Any, store: Store) -> Callable[[], Any]:
    """The scorer with its weights, which are loaded on the first call."""
    loaded: list[Any] = []

    def load() -> Any:
        if not loaded:
            scorer.load(store)
            loaded.append(scorer)
        return scorer

    return load
