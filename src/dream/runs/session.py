"""Starts and finishes a run: claims its folder, saves its config, and writes its encoder and summary.json."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dream.encoders.sharded import whole_encoder
from dream.runs import resume
from dream.runs.agreement import refuse_changes, refuse_other
from dream.runs.claim import claimed, remove_unfinished, remove_unused
from dream.runs.config_file import leave_out_dependents, read_config, save_config
from dream.runs.damage import is_whole, read_or_report
from dream.runs.environment import environment
from dream.runs.layout import (
    BELONGS_TO,
    CHECKPOINTS,
    CONFIG,
    ENCODER,
    INDEX,
    LAST,
    LOG,
    SLURM_JOB,
    SUMMARY,
    run_of,
)
from dream.runs.steps import AUTO, most_steps
from dream.utils import ranks
from dream.utils.atomic_io import LOCK, point_latest, read_checked_json, write_bytes, write_checked_json, write_json
from dream.utils.cached_folders import discard, new_directory
from dream.utils.checkpoints import read_checkpoint, verify_checkpoint
from dream.utils.errors import ConfigError, DataError, user_error
from dream.utils.logging import get_logger, log_to_file
from dream.utils.signals import Interrupted
from dream.utils.timing import Timer

log = get_logger(__name__)


@dataclass
class Run:
    """A run that has claimed its folder.

    Attributes:
        cfg: the resolved config; `cfg.paths.run` is the folder.
        folder: the run's folder.
        checkpoint: the checkpoint to resume from, or None.
        is_new: whether the run has a new folder.
        summary: content of summary.json if the run is already finished, otherwise None.
        timer: measures the time of the run, from its start.
    """

    cfg: DictConfig
    folder: Path
    checkpoint: Path | None = None
    is_new: bool = True
    summary: dict[str, Any] | None = None
    timer: Timer = field(default_factory=Timer)
    _open: ExitStack = field(default_factory=ExitStack)

    def facts(self) -> dict[str, Any]:
        """What the other ranks of the job must know, as plain values."""
        names = ("folder", "checkpoint", "is_new", "summary")
        return {"cfg": OmegaConf.to_container(self.cfg, resolve=True)} | {name: getattr(self, name) for name in names}

    def check(self, identity: Mapping[str, str]) -> None:
        """Check that the checkpoint belongs to this data and encoder, before the scorer is trained.

        Args:
            identity: what the checkpoint must match, see `agreement.identity`.

        Raises:
            DataError: the checkpoint does not match. The run's files are unchanged.
        """
        if self.checkpoint is not None:
            refuse_other(read_checkpoint(self.checkpoint).get("belongs_to", {}), identity)

    def begin(self) -> None:
        """Start to train: only now, when nothing can be refused any more, are files of an existing run changed."""
        if ranks.is_first():
            if not self.is_new:
                self._write_start()
            remove_unfinished(Path(self.cfg.paths.data), Path(self.cfg.paths.logs), self.folder)

    def _write_start(self) -> None:
        self._open.enter_context(log_to_file(self.folder / LOG))
        save_config(self.cfg, self.folder / CONFIG)
        if job := os.environ.get("SLURM_JOB_ID"):
            write_bytes(self.folder / SLURM_JOB, job.encode())
        point_latest(Path(self.cfg.paths.logs) / "latest", self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run was already finished before this start."""
        return self.summary is not None

    @property
    def metric(self) -> float | None:
        """`evaluation.metric` of a finished run, for sweeps; None if the corpus has no labels."""
        return self.summary.get(self.cfg.evaluation.metric) if self.summary else None

    def finish(self, trainer: L.Trainer) -> float | None:
        """Save the trained encoder and summary.json, and print the next commands. Returns `metric`."""
        scorer: Any = trainer.lightning_module.scorer
        scored = ranks.everyone((scorer.pairs_asked, scorer.pairs_scored, scorer.forwards))
        counts = [sum(column) for column in zip(*scored, strict=True)]
        with whole_encoder(trainer.lightning_module) as encoder:
            self.summary = ranks.on_rank_zero(lambda: self._save(trainer, encoder, *counts))
        return self.metric

    def _save(self, trainer: L.Trainer, encoder: Any, asked: int, scored: int, forwards: int) -> dict[str, Any]:
        module: Any = trainer.lightning_module
        with new_directory(self.folder / ENCODER, replace=True) as unfinished:
            encoder.save(unfinished)
            weight = trainer.callback_metrics.get("hybrid/weight")
            belongs_to = {"encoder_fingerprint": encoder.fingerprint(), "store": module.store.hash,
                          "hybrid_weight": None if weight is None else weight.item()}  # fmt: skip
            write_json(unfinished / BELONGS_TO, belongs_to)
        counts = {"pairs_asked": asked, "pairs_scored": scored, "lm_forwards": forwards}
        summary = self._summarize(trainer, module, counts)
        write_checked_json(self.folder / SUMMARY, summary)
        self._print_next_commands(summary)
        return summary

    def _summarize(self, trainer: L.Trainer, module: Any, counts: dict[str, int]) -> dict[str, Any]:
        """The last value of every metric, then facts about the run, with flat names."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        summary: dict[str, Any] = {name: value.item() for name, value in trainer.callback_metrics.items()}
        summary |= {
            "wall_seconds": round(self.timer.wall, 1),
            "windows": data.consumed,
            "steps": trainer.global_step,
            **counts,
            "seed": self.cfg.seed,
            "store": module.store.hash,
            "warnings": [line for callback in callbacks for line in getattr(callback, "warnings", {}).values()],
        }
        return summary | environment(trainer.strategy.root_device)

    def _print_next_commands(self, summary: dict[str, Any]) -> None:
        """Print commands that also work if the environment is not active, as after `make train`."""
        scripts = "" if shutil.which("dream-search") else f"{Path(sys.executable).parent}/"
        commands = {f"tensorboard --logdir {self.cfg.paths.logs} --host localhost": "curves of the training"}
        if self.cfg.corpus.get("name") == "pydocs":
            commands['dream-search "compute cosine similarity between all pairs"'] = "search with the run"
            commands["dream-train experiment=own_corpus corpus.path=my.jsonl"] = "train on your own text"
        else:
            commands["dream-search"] = "asks for queries; dream-serve does the same in the browser"
            commands["dream-export to=sentence_transformers path=my_model"] = "for other programs"
        lines = (f"\n  {scripts}{command}   # {purpose}" for command, purpose in commands.items())
        log.info(f"\nDone in {summary['wall_seconds']:.0f} s. Next:{''.join(lines)}")


@contextmanager
def start_run(cfg: DictConfig | None) -> Iterator[Run]:
    """Rank 0 starts the run, see `start_first`. The others get its folder and config; `cfg` can be None for them."""
    if ranks.is_first():
        assert cfg is not None
        with start_first(cfg) as run:
            ranks.on_rank_zero(run.facts)
            yield run
        return
    facts: dict[str, Any] = ranks.on_rank_zero(dict)
    run = Run(DictConfig(facts.pop("cfg")), **facts)
    if cfg is not None:
        remove_unused(Path(cfg.paths.run))
        cfg.paths.run = str(run.folder)
    yield run


@contextmanager
def start_first(cfg: DictConfig) -> Iterator[Run]:
    """Claim the run's folder, save the resolved config, point logs/latest at it, and log what the run will do.

    It sets `cfg.paths.run` to the folder. If the run is interrupted, the error names the checkpoint to resume from.

    | start                                     | folder          | checkpoint                 |
    |-------------------------------------------|-----------------|----------------------------|
    | a new run                                 | new             | none                       |
    | `ckpt=FILE`                               | new             | FILE                       |
    | `ckpt=last` or `auto`; restarted by SLURM | that of the run | its newest                 |
    | a job of a resumed sweep                  | that of the job | its newest, if it is whole |
    """
    leave_out_dependents(cfg.get("callbacks"))
    logs, unused = Path(cfg.paths.logs), Path(cfg.paths.run)
    checkpoint, sweep = resume.find_checkpoint(cfg.ckpt, cfg.name, logs), resume.sweep_folder()
    own = run_of(checkpoint) if checkpoint and resume.resumes_in_place(cfg.ckpt, checkpoint) else None
    if sweep and own is None and (own := resume.find_job(sweep, cfg)):
        checkpoint = _undamaged_checkpoint(own) or checkpoint
    if sweep:
        resume.announce_sweep(sweep)
    with claimed(own or unused, own is not None) as folder, ExitStack() as open_files:
        if folder != unused:
            remove_unused(unused)
        cfg.paths.run = str(folder)
        was_empty = {file.name for file in folder.iterdir()} <= {LOCK}
        run = _reopen(cfg, folder, checkpoint) if own else Run(cfg, folder, checkpoint)
        run._open = open_files
        previous = (logs / "latest").resolve() if (logs / "latest").exists() else None
        if run.is_new:
            run._write_start()
        _announce(run, sweep is not None)
        try:
            yield run
        except Interrupted as stop:
            stop.checkpoint = folder / LAST if (folder / LAST).exists() else None
            stop.sweep = sweep
            raise
        except Exception as error:
            if run.is_new and was_empty and _is_refusal(error):
                _undo_start(run, previous)
            raise


def _is_refusal(error: Exception) -> bool:
    return isinstance(user_error(error), ConfigError | DataError) or isinstance(
        error, InstantiationException | OmegaConfBaseException
    )


def _undo_start(run: Run, previous: Path | None) -> None:
    """Remove the folder of a new run that was refused before it trained anything; logs/latest is as before.

    The folder was empty when the run started: everything in it is the run's own.
    """
    if (run.folder / CHECKPOINTS).exists():
        return
    latest = Path(run.cfg.paths.logs) / "latest"
    if latest.resolve() == run.folder.resolve():
        if previous is not None:
            point_latest(latest, previous)
        else:
            latest.unlink(missing_ok=True)
    run._open.close()  # its log
    discard(run.folder)


def _announce(run: Run, in_sweep: bool) -> None:
    cfg = run.cfg
    if run.finished and in_sweep:
        log.info(f"Skipped: this job is finished, in {run.folder}")
        return
    if run.summary:
        log.info(
            f"This run is finished: its {run.summary['steps']:,} steps are done, and its encoder and summary.json are "
            f"in {run.folder}. To train it further raise trainer.max_steps; without ckpt a new run starts"
        )
        return
    world, windows = ranks.world(), cfg.data.batch_size
    divided = f" ({world} processes × {windows // world})" if world > 1 else ""
    encoder, objective = (cfg[group]._target_.split(".")[-2] for group in ("encoder", "objective"))
    at_most = "at most " if cfg.trainer.max_steps == AUTO else ""
    resumed = f", resuming from {run.checkpoint}" if run.checkpoint else ""
    log.info(
        f"DREAM: training the {encoder} encoder on corpus {cfg.corpus.name} with the {objective} objective: "
        f"{at_most}{most_steps(cfg.trainer):,} steps of {windows} windows{divided}{resumed}\n  run folder  {run.folder}"
    )


def _reopen(cfg: DictConfig, folder: Path, checkpoint: Path | None) -> Run:
    """The run that stopped or ended in this folder. Damaged files are reported, and rebuilt on resume."""
    run = Run(cfg, folder, checkpoint, is_new=False)
    for file in sorted((folder / CHECKPOINTS).glob("*.ckpt")):
        if file.resolve() != checkpoint:  # `checkpoint` is already verified
            read_or_report(verify_checkpoint, file)
    stored = read_or_report(read_config, folder / CONFIG)
    if stored is not None and checkpoint is not None:
        refuse_changes(stored, cfg)
    snapshots = sorted((folder / INDEX).glob("snapshot-*"))
    whole = [is_whole(snapshot) for snapshot in snapshots][-1:]  # older ones belong to checkpoints
    if (folder / SUMMARY).exists() or (folder / ENCODER).exists():
        summary = read_or_report(read_checked_json, folder / SUMMARY)
        stores = Path(cfg.data.stores_dir).glob(f"*-{summary['store']}") if summary else ()
        whole += [is_whole(part) for part in (folder / ENCODER, *stores)]
        is_done = cfg.trainer.max_steps == AUTO or (summary and summary["steps"] >= cfg.trainer.max_steps)
        if summary and snapshots and all(whole) and is_done:
            run.summary = summary
    return run


def _undamaged_checkpoint(job: Path) -> Path | None:
    """The last checkpoint of a sweep's job. If it is damaged, this is logged, and the job starts again."""
    last = resume.newest_checkpoint(job)
    return last.resolve() if last and is_whole(last, verify_checkpoint) else None
