"""A run's folder: what stands in it from the start, and what is written when it ends."""

import importlib.metadata
import json
import logging
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from dream.assembly import Parts
from dream.corpora.base import Corpus
from dream.encoders.base import Encoder
from dream.errors import ConfigError, DataError
from dream.evaluation.compare import Comparison
from dream.evaluation.split import LabelledSplit
from dream.files import new_directory, point_latest, write_json
from dream.indexes.generation import IndexHandle
from dream.module import RetrieverModule
from dream.runtime import say
from dream.store.store import Store

NEEDS_LABELS = ("evaluation", "best_checkpoint")
VERSIONS_OF = ("torch", "lightning", "transformers", "faiss-cpu", "numpy")


@dataclass
class Run:
    """The folder of the run that is going on, and when it began."""

    folder: Path
    began: float = field(default_factory=time.perf_counter)


def start(cfg: DictConfig) -> Run:
    """Write the resolved config, point logs/latest here and say what is about to happen."""
    folder = Path(cfg.paths.run)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), folder / "config.yaml")
    point_latest(Path(cfg.paths.logs) / "latest", folder)
    say(
        f"DREAM: training the {_choice(cfg.encoder)} encoder on corpus {cfg.corpus.name} "
        f"with the {_choice(cfg.objective)} objective\n  run folder  {folder}"
    )
    return Run(folder)


def _choice(section: DictConfig) -> str:
    return section._target_.split(".")[-2]


def trainer(cfg: DictConfig, corpus: Corpus) -> L.Trainer:
    """The Trainer with its callbacks; those that rank labelled queries only where the split has some."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    callbacks = dict(cfg.callbacks)
    if cfg.evaluation.dev_split not in corpus.splits():
        say(f"Corpus {corpus.name} has no labelled split {cfg.evaluation.dev_split!r}: training without evaluation")
        callbacks = {name: callback for name, callback in callbacks.items() if name not in NEEDS_LABELS}
    return instantiate(
        cfg.trainer,
        callbacks=[instantiate(callback) for callback in callbacks.values() if callback],
        logger=instantiate(cfg.logger),
        default_root_dir=cfg.paths.run,
    )


def checkpoint_to_resume(cfg: DictConfig) -> str | None:
    """The file that `ckpt` names; `last` is that of logs/latest as it was before this run began."""
    if not cfg.ckpt:
        return None
    path = Path(cfg.paths.logs) / "latest" / "checkpoints" / "last.ckpt" if cfg.ckpt == "last" else Path(cfg.ckpt)
    if not path.is_file():
        raise ConfigError("ckpt", cfg.ckpt, f"no such checkpoint (looked for {path.absolute()})")
    return str(path.resolve())


def compare_before(cfg: DictConfig, trainer: L.Trainer, parts: Parts, module: RetrieverModule) -> Comparison | None:
    """The comparison of the report split with BM25 and the untrained encoder ranked; None without labels."""
    parts.encoder.to(trainer.strategy.root_device)
    module.index.refresh(
        parts.encoder, parts.store, 0, trainer.strategy.root_device, cfg.callbacks.refresh.batch_passages
    )
    if cfg.evaluation.report_split not in parts.corpus.splits():
        return None
    split = LabelledSplit(parts.corpus, parts.store, cfg.evaluation.report_split)
    comparison = Comparison(split, parts.encoder, module.index, Path(cfg.paths.data) / "bm25")
    comparison.before_training()
    return comparison


def announce_training(cfg: DictConfig, run: Run, checkpoint: str | None) -> None:
    say(
        f"Training: {cfg.trainer.max_steps:,} steps of {cfg.data.batch_size} windows"
        + (f", resumed from {checkpoint}" if checkpoint else "")
        + f"  ({time.perf_counter() - run.began:.0f} s after the start)"
    )


def finish(run: Run, cfg: DictConfig, trainer: L.Trainer, parts: Parts, comparison: Comparison | None) -> float | None:
    """Save the encoder and summary.json, show the table and what to do next; returns `evaluation.metric`."""
    with new_directory(run.folder / "encoder") as aside:
        parts.encoder.save(aside)
    summary: dict[str, Any] = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if comparison:
        comparison.after_training()
        summary |= comparison.flat()
        for logger in trainer.loggers:
            logger.log_metrics({f"report/{name}": value for name, value in comparison.flat().items()})
    metric = summary.get(cfg.evaluation.metric)
    summary |= {
        "wall_seconds": round(time.perf_counter() - run.began, 1),
        "windows": parts.data.consumed,
        "steps": trainer.global_step,
        "seed": cfg.seed,
        "store": parts.store.hash,
        "python": platform.python_version(),
    }
    summary |= {f"version/{package}": importlib.metadata.version(package) for package in VERSIONS_OF}
    write_json(run.folder / "summary.json", summary)
    # A newcomer who typed `make train` has not activated the environment: show commands that work as they stand.
    scripts = "" if shutil.which("dream-search") else f"{Path(sys.executable).parent}/"
    say(
        f"\nDone in {summary['wall_seconds']:.0f} s. Next:\n"
        f"  {scripts}tensorboard --logdir {cfg.paths.logs} --host localhost   # what happened, step by step\n"
        f'  {scripts}dream-search "compute cosine similarity between all pairs"   # ask the trained index\n'
        f"  {scripts}dream-train experiment=own_corpus corpus.path=my.jsonl   # the same on your own text"
    )
    return metric


@dataclass
class FinishedRun:
    """What a finished run left behind, opened for searching."""

    cfg: DictConfig
    encoder: Encoder
    store: Store
    index: IndexHandle


def open_run(folder: str | Path, device: str | torch.device = "cpu") -> FinishedRun:
    """Encoder, store and last index generation of a run; DataError says which of them is missing."""
    folder = Path(folder)
    if not (folder / "config.yaml").exists():
        raise ConfigError("run", folder, "no run is there; train one with dream-train experiment=quickstart")
    if not (folder / "encoder").exists():
        raise ConfigError("run", folder, "this run did not finish: resume it with dream-train ckpt=last")
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    encoder_class: Any = get_class(cfg.encoder._target_)
    encoder = encoder_class.open(folder / "encoder").eval().to(device)
    generations = sorted((folder / "index").glob("generation-*"))
    if not generations:
        raise DataError(f"{folder / 'index'}: no index generation; resume the run with dream-train ckpt=last")
    store_hash = json.loads((generations[-1] / "manifest.json").read_text())["store_hash"]
    stores = [path for path in Path(cfg.data.stores_dir).glob(f"*-{store_hash}") if path.is_dir()]
    if not stores:
        raise DataError(
            f"{cfg.data.stores_dir}: the store {store_hash} of this run is gone; training again rebuilds it"
        )
    store = Store(stores[0])
    index = IndexHandle(instantiate(cfg.index), folder / "index")
    index.open(generations[-1], store, encoder.width)
    return FinishedRun(cfg, encoder, store, index)
