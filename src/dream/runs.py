"""A run's folder: what stands in it from the start, and what is written when it ends."""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
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
from dream.checkpoints import verify_checkpoint
from dream.corpora.base import Corpus
from dream.encoders.base import Encoder
from dream.errors import ConfigError, DamageError, DataError
from dream.evaluation.compare import Comparison
from dream.evaluation.split import LabelledSplit
from dream.files import (
    new_directory,
    point_latest,
    read_checked_json,
    usable,
    verify,
    write_bytes,
    write_checked_json,
    write_json,
)
from dream.indexes.generation import IndexHandle
from dream.interrupts import Interrupted
from dream.module import RetrieverModule
from dream.runtime import say
from dream.store.store import Store

NEEDS_LABELS = ("evaluation", "best_checkpoint")
ENCODER, INDEX, SUMMARY = "encoder", "index", "summary.json"  # in the run's folder
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
    goes_on: bool = False  # in the folder where it stopped, after some steps
    summary: dict[str, Any] | None = None  # of a run that is finished
    began: float = field(default_factory=time.perf_counter)


def open_again(cfg: DictConfig, folder: Path, checkpoint: Path | None) -> Run:
    """The run that stopped or ended in this folder. What is damaged of it is named, and made anew if it goes on."""
    run = Run(folder, checkpoint, goes_on=checkpoint is not None and folder.resolve() in checkpoint.parents)
    for file in sorted((folder / "checkpoints").glob("*.ckpt")):
        if file.resolve() != checkpoint:  # that one has been verified
            _unless_damaged(verify_checkpoint, file)
    if _unless_damaged(rundir.read_config, folder / rundir.CONFIG) is None:
        rundir.save_config(cfg, folder / rundir.CONFIG)
    generations = sorted((folder / INDEX).glob("generation-*"))
    whole = [_unless_damaged(_verified, generation) for generation in generations][-1:]  # the others serve checkpoints
    if (folder / SUMMARY).exists() or (folder / ENCODER).exists():
        summary = _unless_damaged(read_checked_json, folder / SUMMARY)
        stores = Path(cfg.data.stores_dir).glob(f"*-{summary['store']}") if summary else ()
        whole += [_unless_damaged(_verified, part) for part in (folder / ENCODER, *stores)]
        if summary and generations and all(whole) and summary["steps"] >= cfg.trainer.max_steps:
            run.summary = summary
    return run


def _verified(folder: Path) -> bool:
    verify(folder)
    return True


def _unless_damaged(read: Callable[[Path], Any], path: Path) -> Any:
    """What it reads there, or None where that is damaged, which is said."""
    try:
        return read(path)
    except DamageError as damage:
        say(str(damage))
        return None


@contextmanager
def start(cfg: DictConfig) -> Iterator[Run]:
    """Claim the run's folder, write the resolved config, point logs/latest there and say what is about to happen.

    `cfg.paths.run` names the folder afterwards. An interruption is told where the run can go on. A job of a sweep that
    is started again in the sweep's folder goes on in its own, or is finished already.
    """
    checkpoint, unused, sweep = rundir.find_checkpoint(cfg), Path(cfg.paths.run), rundir.sweep_folder()
    wanted = _run_of(checkpoint) if checkpoint and rundir.goes_on(cfg, checkpoint) else None
    if sweep and wanted is None and (wanted := rundir.find_job(sweep, cfg)):
        checkpoint = _last_of(wanted) or checkpoint
    if sweep:
        rundir.announce_sweep(sweep)
    with rundir.claimed(wanted or unused, wanted is not None) as folder:
        if folder != unused:
            with suppress(OSError):  # Hydra has made one for a new run; not empty, it is another run's
                unused.rmdir()
        cfg.paths.run = str(folder)
        rundir.tidy(Path(cfg.paths.data), Path(cfg.paths.logs), folder)
        run = open_again(cfg, folder, checkpoint) if wanted else Run(folder, checkpoint)
        if run.summary is None:
            rundir.save_config(cfg, folder / rundir.CONFIG)
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
            stop.checkpoint = folder / rundir.LAST if (folder / rundir.LAST).exists() else None
            stop.sweep = sweep
            raise


def _last_of(job: Path) -> Path | None:
    """The last checkpoint of a job of a sweep; one that is damaged is named, and costs the job's steps."""
    last = rundir.newest_checkpoint(job)
    return last.resolve() if last and _unless_damaged(_checked, last) else None


def _checked(checkpoint: Path) -> bool:
    verify_checkpoint(checkpoint)
    return True


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
    assert run.summary is not None
    if rundir.sweep_folder():
        say(f"Skipped: this job is finished, in {run.folder}")
    else:
        say(f"This run is finished: it has done its {cfg.trainer.max_steps:,} steps, and {run.folder} has its encoder "
            "and summary.json. To train it further raise trainer.max_steps; without ckpt a new run starts")  # fmt: skip
    return run.summary.get(cfg.evaluation.metric)


def compare_before(
    cfg: DictConfig, run: Run, trainer: L.Trainer, parts: Parts, module: RetrieverModule
) -> Comparison | None:
    """The comparison of the report split with BM25 and the untrained encoder ranked; None without labels.

    A run that goes on has ranked by the untrained encoder before, and need not embed the corpus with it again. One
    without `callbacks.refresh` never embeds the corpus, and so has nothing to compare.
    """
    _keep_untrained(cfg, run, parts)
    if not cfg.callbacks.get("refresh"):
        return None
    labelled = cfg.evaluation.report_split in parts.corpus.splits()
    known = _read_untrained(run, cfg, parts) if run.goes_on and labelled else None
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
    write_checked_json(run.folder / UNTRAINED, _belongs(cfg, parts) | {"scores": comparison.results["untrained"]})
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
    content = _unless_damaged(read_checked_json, run.folder / UNTRAINED) or {}
    scores = content.pop("scores", None)
    return scores if content == _belongs(cfg, parts) else None


def announce_training(cfg: DictConfig, run: Run) -> None:
    say(
        f"Training: {cfg.trainer.max_steps:,} steps of {cfg.data.batch_size} windows"
        + (f", resumed from {run.checkpoint}" if run.checkpoint else "")
        + f"  ({time.perf_counter() - run.began:.0f} s after the start)"
    )


def finish(run: Run, cfg: DictConfig, trainer: L.Trainer, parts: Parts, comparison: Comparison | None) -> float | None:
    """Save the encoder and summary.json, show the table and what to do next; returns `evaluation.metric`."""
    with new_directory(run.folder / ENCODER, replace=True) as aside:
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
    write_checked_json(run.folder / SUMMARY, summary)
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
        rundir.read_config(file)
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
    index = IndexHandle(instantiate(cfg.index), folder / INDEX)
    with _how_to_mend():
        index.open(generation, store, encoder.width)
    return FinishedRun(cfg, encoder, store, index)


def open_encoder(folder: Path, device: str | torch.device, name: str = ENCODER) -> tuple[DictConfig, Encoder]:
    """Config and encoder of a finished run: the trained one, or the one it started from, `UNTRAINED_ENCODER`."""
    cfg = open_config(folder)
    if not (folder / name).exists():
        raise ConfigError("run", folder, f"this run did not keep its {name.replace('_', ' ')} "
                          "(evaluation.keep_untrained): leave untrained out of systems")  # fmt: skip
    with _how_to_mend():
        verify(folder / name)
    encoder_class: Any = get_class(cfg.encoder._target_)
    return cfg, encoder_class.open(folder / name).eval().to(device)


def open_config(folder: Path) -> DictConfig:
    """The config of a finished run; ConfigError where none is there, DamageError where it is not as it was written."""
    if not (folder / rundir.CONFIG).exists() and not (folder / rundir.LAST).exists():
        raise ConfigError("run", folder, "no run is there; train one with dream-train experiment=quickstart")
    with _how_to_mend():
        cfg = _load_config(folder / rundir.CONFIG)
    if not (folder / ENCODER).exists():
        raise ConfigError("run", folder, "this run did not finish: resume it with dream-train ckpt=last")
    return cfg


@contextmanager
def _how_to_mend() -> Iterator[None]:
    try:
        yield
    except DamageError as damage:
        raise DamageError(f"{damage}; dream-train ckpt=last, with the run's overrides, makes it anew") from damage


def open_store(folder: Path, cfg: DictConfig) -> tuple[Path, Store]:
    """The last index generation of a run, as a path, and the store it was made from."""
    generations = sorted((folder / INDEX).glob("generation-*"))
    if not generations:
        raise DataError(f"{folder / INDEX}: no index generation; resume the run with dream-train ckpt=last")
    belongs_to = folder / ENCODER / BELONGS_TO
    try:
        store_hash = json.loads(belongs_to.read_text())["store"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{belongs_to}: cannot be read; this is not the encoder folder that the run wrote") from error
    stores = [path for path in Path(cfg.data.stores_dir).glob(f"*-{store_hash}") if path.is_dir()]
    if not stores:
        raise DataError(
            f"{cfg.data.stores_dir}: the store {store_hash} of this run is gone; training again rebuilds it"
        )
    with _how_to_mend():
        verify(stores[0])
    return generations[-1], Store(stores[0])
