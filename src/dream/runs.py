"""A run's folder: what stands in it from the start, and what is written when it ends."""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dream import rundir
from dream.assembly import Parts
from dream.callbacks.guards import warnings_of
from dream.corpora.base import Corpus
from dream.encoders.base import Encoder
from dream.errors import ConfigError, DataError
from dream.evaluation.compare import Comparison
from dream.evaluation.split import LabelledSplit
from dream.files import new_directory, point_latest, usable, verify, write_bytes, write_json
from dream.indexes.generation import IndexHandle
from dream.interrupts import Interrupted
from dream.module import RetrieverModule
from dream.runtime import say
from dream.store.store import Store

NEEDS_LABELS = ("evaluation", "best_checkpoint")
UNTRAINED = "untrained.json"  # scores of the untrained encoder, in the run's folder
UNTRAINED_ENCODER = "untrained_encoder"  # its weights, for dream-evaluate
BELONGS_TO = "belongs_to.json"  # in the encoder's folder: hashes of the weights and of the store
OWN_CODE = "dream."
OPENED = ("encoder", "index", "corpus", "scorer", "data")  # sections of the config that opening a run can instantiate
VERSIONS_OF = ("torch", "lightning", "transformers", "faiss-cpu", "numpy")


@dataclass
class Run:
    """The folder of the run that is going on, the checkpoint that it goes on from, and when it began."""

    folder: Path
    checkpoint: Path | None = None
    goes_on: bool = False  # in the folder where it stopped
    began: float = field(default_factory=time.perf_counter)

    def is_finished(self, cfg: DictConfig) -> bool:
        """Whether the run that should go on has done all its steps and left its encoder and summary."""
        if not self.goes_on or not (self.folder / "encoder").is_dir():
            return False
        try:
            return json.loads((self.folder / "summary.json").read_text())["steps"] >= cfg.trainer.max_steps
        except (OSError, ValueError, TypeError, KeyError):
            return False


@contextmanager
def start(cfg: DictConfig) -> Iterator[Run]:
    """Claim the run's folder, write the resolved config, point logs/latest there and say what is about to happen.

    `cfg.paths.run` names the folder afterwards. An interruption is told where the run can go on.
    """
    checkpoint = rundir.find_checkpoint(cfg)
    again = rundir.goes_on(cfg, checkpoint)
    unused = Path(cfg.paths.run)
    wanted = _run_of(checkpoint) if again and checkpoint else unused
    with rundir.claimed(wanted, again) as folder:
        if folder != unused:
            with suppress(OSError):  # Hydra has made one for a new run; not empty, it is another run's
                unused.rmdir()
        cfg.paths.run = str(folder)
        rundir.tidy(Path(cfg.paths.data), Path(cfg.paths.logs), folder)
        run = Run(folder, checkpoint, again)
        if not run.is_finished(cfg):
            rundir.save_config(cfg, folder / "config.yaml")
            if job := os.environ.get("SLURM_JOB_ID"):
                write_bytes(folder / "slurm_job", job.encode())
        point_latest(Path(cfg.paths.logs) / "latest", folder)
        say(
            f"DREAM: training the {_choice(cfg.encoder)} encoder on corpus {cfg.corpus.name} "
            f"with the {_choice(cfg.objective)} objective\n  run folder  {folder}"
        )
        try:
            yield run
        except Interrupted as stop:
            if (folder / rundir.LAST).exists():
                stop.checkpoint = folder / rundir.LAST
            raise


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


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


def already_finished(cfg: DictConfig, run: Run) -> float | None:
    """Say that there is nothing left to do; returns `evaluation.metric`, as the run did."""
    say(f"This run is finished: it has done its {cfg.trainer.max_steps:,} steps, and {run.folder} has its encoder and "
        "summary.json. To train it further raise trainer.max_steps; without ckpt a new run starts")  # fmt: skip
    return json.loads((run.folder / "summary.json").read_text()).get(cfg.evaluation.metric)


def compare_before(
    cfg: DictConfig, run: Run, trainer: L.Trainer, parts: Parts, module: RetrieverModule
) -> Comparison | None:
    """The comparison of the report split with BM25 and the untrained encoder ranked; None without labels.

    A run that goes on has ranked by the untrained encoder before, and need not embed the corpus with it again.
    """
    _keep_untrained(cfg, run, parts)
    labelled = cfg.evaluation.report_split in parts.corpus.splits()
    known = _read_untrained(run, cfg, parts) if run.goes_on else None
    if not run.goes_on or (labelled and known is None):
        parts.encoder.to(trainer.strategy.root_device)
        module.index.refresh(
            parts.encoder, parts.store, 0, trainer.strategy.root_device, cfg.callbacks.refresh.batch_passages
        )
    if not labelled:
        return None
    split = LabelledSplit(parts.corpus, parts.store, cfg.evaluation.report_split)
    comparison = Comparison(split, parts.encoder, module.index, Path(cfg.paths.data) / "bm25")
    comparison.before_training(known)
    write_json(run.folder / UNTRAINED, _belongs(cfg, parts) | {"scores": comparison.results["untrained"]})
    return comparison


def _keep_untrained(cfg: DictConfig, run: Run, parts: Parts) -> None:
    """Before a checkpoint is loaded, a run that goes on has the weights that it once began with, too."""
    folder = run.folder / UNTRAINED_ENCODER
    if cfg.evaluation.keep_untrained and not usable(folder):
        with new_directory(folder) as aside:
            parts.encoder.save(aside)


def _belongs(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    return {"store": parts.store.hash, "split": cfg.evaluation.report_split, "seed": cfg.seed}


def _read_untrained(run: Run, cfg: DictConfig, parts: Parts) -> dict[str, float] | None:
    """What `compare_before` wrote when the run began, where it still holds."""
    try:
        content = json.loads((run.folder / UNTRAINED).read_text())
        scores = content.pop("scores")
        same = content == _belongs(cfg, parts) and all(isinstance(score, float) for score in scores.values())
    except (OSError, ValueError, AttributeError, KeyError):
        return None
    return scores if same else None


def announce_training(cfg: DictConfig, run: Run) -> None:
    say(
        f"Training: {cfg.trainer.max_steps:,} steps of {cfg.data.batch_size} windows"
        + (f", resumed from {run.checkpoint}" if run.checkpoint else "")
        + f"  ({time.perf_counter() - run.began:.0f} s after the start)"
    )


def finish(run: Run, cfg: DictConfig, trainer: L.Trainer, parts: Parts, comparison: Comparison | None) -> float | None:
    """Save the encoder and summary.json, show the table and what to do next; returns `evaluation.metric`."""
    with new_directory(run.folder / "encoder", replace=True) as aside:
        parts.encoder.save(aside)
        write_json(aside / BELONGS_TO, {"encoder_fingerprint": parts.encoder.fingerprint(), "store": parts.store.hash})
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
        "pairs_asked": parts.scorer.pairs_asked,
        "pairs_scored": parts.scorer.pairs_scored,
        "lm_forwards": parts.scorer.forwards,
        "seed": cfg.seed,
        "store": parts.store.hash,
        "python": platform.python_version(),
        "warnings": warnings_of(trainer),
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


def _load_config(file: Path) -> DictConfig:
    """The config of a run, which may be a stranger's: it must name no code but this package's."""
    try:
        cfg = OmegaConf.load(file)
        assert isinstance(cfg, DictConfig)
        parts = [cfg[name] for name in OPENED]
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{file}: not the config of a run ({' '.join(str(error).split())[:120]})") from error
    for target in _targets(OmegaConf.to_container(OmegaConf.create(parts), resolve=False)):
        if not str(target).startswith(OWN_CODE):
            raise DataError(f"{file}: refused, because it names {target}, and opening a run uses no code but "
                            f"{OWN_CODE}*; put the class into this package, or train with it yourself")  # fmt: skip
    return cfg


def _targets(node: Any) -> Iterator[Any]:
    """Every `_target_` below a node of plain containers."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _targets(value)


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
    cfg, encoder = open_encoder(folder, device)
    generation, store = open_store(folder, cfg)
    index = IndexHandle(instantiate(cfg.index), folder / "index")
    index.open(generation, store, encoder.width)
    return FinishedRun(cfg, encoder, store, index)


def open_encoder(folder: Path, device: str | torch.device, name: str = "encoder") -> tuple[DictConfig, Encoder]:
    """Config and encoder of a finished run: the trained one, or the one it started from, `UNTRAINED_ENCODER`."""
    cfg = open_config(folder)
    if not (folder / name).exists():
        raise ConfigError("run", folder, f"this run did not keep its {name.replace('_', ' ')} "
                          "(evaluation.keep_untrained): leave untrained out of systems")  # fmt: skip
    verify(folder / name)
    encoder_class: Any = get_class(cfg.encoder._target_)
    return cfg, encoder_class.open(folder / name).eval().to(device)


def open_config(folder: Path) -> DictConfig:
    """The config of a finished run; ConfigError where none is there."""
    if not (folder / "config.yaml").exists():
        raise ConfigError("run", folder, "no run is there; train one with dream-train experiment=quickstart")
    if not (folder / "encoder").exists():
        raise ConfigError("run", folder, "this run did not finish: resume it with dream-train ckpt=last")
    return _load_config(folder / "config.yaml")


def open_store(folder: Path, cfg: DictConfig) -> tuple[Path, Store]:
    """The last index generation of a run, as a path, and the store it was made from."""
    generations = sorted((folder / "index").glob("generation-*"))
    if not generations:
        raise DataError(f"{folder / 'index'}: no index generation; resume the run with dream-train ckpt=last")
    store_hash = json.loads((generations[-1] / "manifest.json").read_text())["store_hash"]
    stores = [path for path in Path(cfg.data.stores_dir).glob(f"*-{store_hash}") if path.is_dir()]
    if not stores:
        raise DataError(
            f"{cfg.data.stores_dir}: the store {store_hash} of this run is gone; training again rebuilds it"
        )
    return generations[-1], Store(stores[0])
