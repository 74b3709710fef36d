"""Builds the objects of a training run from the config. Only this file and `runs.session` read the training config."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dream.callbacks.evaluation import RetrievalEvaluation
from dream.callbacks.hyperparameters import HyperParameters
from dream.callbacks.weight_average import WeightAverage
from dream.corpora.base import Corpus
from dream.data.window_datamodule import WindowDataModule
from dream.encoders.base import Encoder
from dream.encoders.sharded import refuse_undividable
from dream.indexes.snapshot import IndexHandle
from dream.module import RetrieverModule
from dream.objectives.base import Objective
from dream.runs.agreement import identity
from dream.runs.config_file import without_secrets
from dream.runs.estimate import announce
from dream.runs.layout import INDEX, LAST
from dream.runs.steps import AUTO, most_steps, steps_of
from dream.scorers.questions import open_or_write
from dream.store.store import Store
from dream.utils.checkpoints import GracefulStop, SafeCheckpointIO
from dream.utils.errors import require, require_installed
from dream.utils.logging import get_logger, quiet_lightning
from dream.utils.runtime import training_precision

log = get_logger(__name__)

# Keys of Lightning's Trainer that would repeat or cut the stream of windows. Each value says what to use instead.
_STEPS = "runs are counted in steps, not epochs; use trainer.max_steps"
REFUSED = {
    "max_epochs": _STEPS,
    "min_epochs": _STEPS,
    "limit_train_batches": f"it would repeat the same windows; {_STEPS}",
    "overfit_batches": "to train on a few windows again and again use data.limit_windows, or debug=overfit",
    "fast_dev_run": "to try every part in seconds use debug=smoke",
    "val_check_interval": "dev queries are ranked every callbacks.evaluation.every_n_steps steps",
    "check_val_every_n_epoch": "dev queries are ranked every callbacks.evaluation.every_n_steps steps",
    "limit_val_batches": "all dev queries are ranked; callbacks.evaluation=null ranks none",
    "num_sanity_val_steps": "there is no validation loop; remove it",
    "reload_dataloaders_every_n_epochs": "the stream of windows has no epochs; remove it",
    "use_distributed_sampler": "the stream gives each rank its own windows; remove it",
}
OPTIONAL_LOGGERS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # class of Lightning → package and extra
PRECISIONS = ("32-true", "bf16-mixed", "auto")  # of trainer=fsdp
NEED_LABELS = ("evaluation", "best_checkpoint")  # callbacks that rank the labelled queries of the dev split


def check_config(cfg: DictConfig) -> None:
    """Refuse values that no part of the training can check itself, before a run folder is made."""
    require(isinstance(cfg.seed, int), "seed", cfg.seed, "must be a whole number")
    steps = cfg.trainer.max_steps
    is_count = isinstance(steps, int) and steps > 0
    require(is_count or steps == AUTO, "trainer.max_steps", steps, f"a number of steps, at least 1, or {AUTO}")
    strategy = cfg.trainer.get("strategy", "auto")
    known = not isinstance(strategy, str) or strategy == "auto" or strategy.startswith(("ddp", "single_device"))
    require(known, "trainer.strategy", strategy, "is not supported; choose trainer=ddp, or trainer=fsdp, which divides "
            "the weights of encoder=hf over the processes by FSDP2")  # fmt: skip
    if _divides_weights(cfg):
        mode = OmegaConf.select(cfg, "callbacks.index_refresh.mode")
        require(mode != "background", "callbacks.index_refresh.mode", mode, "is not possible with trainer=fsdp")
        precision = cfg.trainer.get("precision")
        require(precision in PRECISIONS, "trainer.precision", precision, f"choose {', '.join(PRECISIONS)} with "
                "trainer=fsdp")  # fmt: skip
    for key, remedy in REFUSED.items():
        require(key not in cfg.trainer, f"trainer.{key}", cfg.trainer.get(key), remedy)


def _divides_weights(cfg: DictConfig) -> bool:
    """Whether the weights of the encoder are divided over the processes (`trainer=fsdp`)."""
    target = OmegaConf.select(cfg, "trainer.strategy._target_") or ""
    return target.endswith("ModelParallelStrategy")


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings of the Trainer as plain values: they decide how many processes the run has."""
    return OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[return-value]


@dataclass
class TextComponents:
    """The parts that need no weights: corpus, store, windows, both tokenizers, objective and candidates."""

    corpus: Corpus
    scorer: Any
    encoder: Encoder
    data: WindowDataModule
    objective: Objective | None
    candidates: Any

    @property
    def store(self) -> Store:
        """The store. It is opened or built on first use."""
        return self.data.store

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must match. It is known before the store is built and the scorer is trained."""
        return identity(self.data.store_hash, self.encoder)


def build_text(cfg: DictConfig) -> TextComponents:
    """Build the parts without weights. Cheap parts come first, to find bad values before the corpus is read."""
    objective, candidates = instantiate(cfg.get("objective")), instantiate(cfg.get("candidates"))
    if objective and candidates and objective.needs_candidates:
        learns = candidates.scored_windows != 0 or objective.needs_continuation
        remedy = "no window has a target; score some windows, or set objective.continuation above 0"
        require(learns, "candidates.scored_windows", candidates.scored_windows, remedy)
    questions = cfg.data.get("questions")
    asks = objective is None or objective.needs_candidates or questions is None  # other objectives load no scorer
    require(asks, "data.questions", questions, "this objective does not use the language model, so nothing would write "
            "questions; choose objective=kl_posterior, or data.questions=null")  # fmt: skip
    corpus = instantiate(cfg.corpus)
    scorer = instantiate(cfg.scorer, corpus=corpus)
    encoder = instantiate(cfg.encoder)
    if _divides_weights(cfg):
        refuse_undividable(encoder)
    encoder.adopt_tokenizer(scorer.tokenizer)
    data = instantiate(
        cfg.data,
        corpus=corpus,
        encoder_tokenizer=encoder.tokenizer,
        scorer_tokenizer=scorer.tokenizer,
        max_query_tokens=encoder.max_tokens,
        scored_windows=candidates.scored_windows if candidates else None,
    )
    return TextComponents(corpus, scorer, encoder, data, objective, candidates)


def _uses_bm25(cfg: DictConfig, text: TextComponents) -> bool:
    """Whether the run builds a BM25 index: for candidates, to pretrain a scorer, or for the table at its end."""
    candidates = text.candidates if text.objective and text.objective.needs_candidates else None
    proposes = candidates is not None and any(candidates.schedule.get("bm25", ()))
    ranks_queries = bool(text.corpus.splits()) or cfg.data.get("questions") is not None
    return proposes or ranks_queries or getattr(text.scorer, "pretrains", False)


def build_module(cfg: DictConfig, text: TextComponents, device: torch.device | str = "cpu") -> RetrieverModule:
    """Build the module with all weights. The scorer is pretrained or loaded, the encoder is created or loaded.

    `device` is the trainer's: before training, the scorer writes questions or finds heads there.
    """
    objective = text.objective
    assert objective is not None
    searched = instantiate(cfg.index)
    announce(text.data, text.encoder, text.scorer, searched, Path(cfg.paths.run), _uses_bm25(cfg, text))
    store = text.store
    unfit = objective.needs_candidates and not text.data.has_targets
    require(not unfit, "objective", cfg.objective._target_, "needs targets for the language model, but labelled pairs "
            "have none; choose objective=info_nce")  # fmt: skip
    index = IndexHandle(searched, Path(cfg.paths.run) / INDEX)
    load_scorer = _loader(text.scorer.to(device), store)
    if objective.needs_candidates:
        scorer = load_scorer()
        ask_questions(text, scorer)
        # Without continuations, the passage of a question is always its first candidate.
        own_passage = bool(text.data.questions) and not objective.needs_continuation
        text.candidates.prepare(store, index, steps_of(cfg.trainer, text.data), own_passage)
        objective.prepare(scorer, store, text.candidates.k)
    text.encoder.initialize(store, lambda: load_scorer().token_embeddings())
    return RetrieverModule(
        encoder=text.encoder,
        scorer=text.scorer,
        objective=objective,
        candidates=text.candidates,
        index=index,
        store=store,
        optimizer=instantiate(cfg.optimizer.optimizer, _partial_=True),
        schedule=instantiate(cfg.optimizer.schedule, _partial_=True),
        seed=cfg.seed,
    )


def ask_questions(text: TextComponents, scorer: Any) -> None:
    """With `data.questions`, let the windows be these questions. The scorer writes them, or they are in the cache."""
    if text.data.questions:
        text.store.ask(open_or_write(scorer, text.store, text.data.tokenizers, text.data.questions))


def build_trainer(cfg: DictConfig, corpus: Corpus) -> L.Trainer:
    """Build the Trainer with its callbacks. Without labelled dev queries, callbacks that need them are left out."""
    quiet_lightning()
    configs = cfg.get("callbacks") or {}
    callbacks = {name: config for name, config in configs.items() if config and "_target_" in config}
    if "index_refresh" not in callbacks:
        log.warning("without callbacks.index_refresh the run has no index: dream-search cannot use it")
    if cfg.evaluation.dev_split not in corpus.splits():
        split = cfg.evaluation.dev_split
        log.info(f"Corpus {corpus.name} has no labelled split {split!r}: training without evaluation")
        callbacks = {name: callback for name, callback in callbacks.items() if name not in NEED_LABELS}
    built = [instantiate(callback) for callback in callbacks.values()]
    built.sort(key=lambda callback: not isinstance(callback, WeightAverage))  # first: the others use the weights
    for callback in built:
        if isinstance(callback, RetrievalEvaluation):
            callback.check_interval(built)
    stop = GracefulStop(Path(cfg.paths.run) / LAST)
    return instantiate(
        cfg.trainer,
        max_steps=most_steps(cfg.trainer),
        precision=precision_of(cfg.trainer),
        callbacks=[stop.own_signals, *built, HyperParameters(without_secrets(cfg)), stop],
        logger=[instantiate(logger) for logger in _loggers(cfg)],
        plugins=[SafeCheckpointIO()],
        default_root_dir=cfg.paths.run,
        max_epochs=-1,  # runs are counted in steps: the stream of windows has no end
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the stream gives each rank its own windows
        enable_model_summary=False,
    )


def root_device(cfg: DictConfig) -> torch.device:
    """The device on which this process would train."""
    quiet_lightning()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    known = {"max_steps": most_steps(cfg.trainer), "precision": precision_of(cfg.trainer)}
    return instantiate(cfg.trainer, **known, **quiet).strategy.root_device


def precision_of(trainer: DictConfig) -> Any:
    """Lightning's precision. `auto`: bf16-mixed if the device has native bfloat16 products, otherwise 32-true."""
    if trainer.get("precision") != "auto":
        return trainer.get("precision")
    on_gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    return training_precision("cuda" if on_gpu else "cpu")


def _loggers(cfg: DictConfig) -> list[DictConfig]:
    """The configs of one logger, of several (logger=[tensorboard,csv]) or of none (logger=null)."""
    chosen = cfg.get("logger")
    if not chosen:
        return []
    loggers = [chosen] if "_target_" in chosen else [logger for logger in chosen.values() if logger]
    for logger in loggers:
        package = OPTIONAL_LOGGERS.get(logger["_target_"].rpartition(".")[2])
        if package:
            require_installed([package], package, "logger", package)
    return loggers


def _loader(scorer: Any, store: Store) -> Callable[[], Any]:
    """A function that returns the scorer and loads its weights on the first call."""
    loaded: list[Any] = []

    def load() -> Any:
        if not loaded:
            scorer.load(store)
            loaded.append(scorer)
        return scorer

    return load
