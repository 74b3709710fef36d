"""Finds the checkpoint that a run resumes from, and the job of a sweep that has a config."""

import json
import os
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dream.runs.config_file import config_text, read_config
from dream.runs.layout import CHECKPOINT_PATTERNS, CHECKPOINTS, CONFIG, LAST, SLURM_JOB, SUMMARY
from dream.utils.checkpoints import verify_checkpoint
from dream.utils.errors import ConfigError, DamageError, DataError
from dream.utils.logging import get_logger

log = get_logger(__name__)


def find_checkpoint(ckpt: str | None, name: str, logs: Path) -> Path | None:
    """The checkpoint that `ckpt` names. If SLURM restarts a job, the job's own. None to start from the beginning.

    Args:
        ckpt: a file. `last`: the checkpoint of the newest run with this name that has one. `auto`: the checkpoint of
            the newest run with this name, if it has one.
        name: name of the experiment.
        logs: folder of all runs.

    Raises:
        ConfigError: there is no such checkpoint.
        DamageError: the checkpoint is damaged.
    """
    requeued = os.environ.get("SLURM_JOB_ID") if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else None
    # `ckpt` says only where the job began. The jobs of a sweep are found by their config, see `find_job`.
    path = _newest(logs, name, requeued) if requeued and not sweep_folder() else None
    path = path or _named(ckpt, name, logs)
    if path is not None:
        verify_checkpoint(path)
    return path.resolve() if path else None


def _named(ckpt: str | None, name: str, logs: Path) -> Path | None:
    if ckpt in ("last", "auto"):
        if sweep_folder():
            remedy = "all jobs of the sweep would resume from one run; to resume a sweep, give hydra.sweep.dir=FOLDER"
            raise ConfigError("ckpt", ckpt, remedy)
        path = _newest(logs, name, None, with_checkpoint=ckpt == "last")
        if path is None and ckpt == "last":
            remedy = f"no run named {name!r} below {logs} has a checkpoint yet; start without ckpt"
            raise ConfigError("ckpt", "last", remedy)
        return path
    if ckpt and not Path(ckpt).is_file():
        raise ConfigError("ckpt", ckpt, "no such checkpoint")
    return Path(ckpt) if ckpt else None


def resumes_in_place(ckpt: str | None, checkpoint: Path | None) -> bool:
    """Whether the run continues in the checkpoint's own folder. `ckpt=FILE` starts a new run from the checkpoint."""
    return checkpoint is not None and (ckpt in (None, "last", "auto") or Path(ckpt).resolve() != checkpoint)


def _newest(logs: Path, name: str, job: str | None, with_checkpoint: bool = True) -> Path | None:
    """Newest checkpoint of the newest run with this name. If `job` is given, only runs of this SLURM job count.

    Without `with_checkpoint`, the result is None if the newest run has no checkpoint.
    """
    begun = {config.parent for config in logs.rglob(CONFIG)}
    begun |= {file.parents[pattern.count("/")] for pattern in CHECKPOINT_PATTERNS for file in logs.rglob(pattern)}
    runs = []
    for run in begun:
        checkpoint = newest_checkpoint(run)
        if (checkpoint or not with_checkpoint) and _is_named(run, logs, name) and job in (None, _job_of(run)):
            runs.append((_mtime(run / CONFIG) or (_mtime(checkpoint) if checkpoint else 0), run, checkpoint))
    return max(runs)[2] if runs else None


def newest_checkpoint(run: Path) -> Path | None:
    """The newer one of last.ckpt and SLURM's checkpoint. If both are missing, the newest other checkpoint."""
    files = [*run.glob(str(LAST)), *run.glob("hpc_ckpt_*.ckpt")]
    if not files and (files := list(run.glob(f"{CHECKPOINTS}/*.ckpt"))):
        log.warning(f"{run / LAST}: missing; resuming from the newest other checkpoint")
    return max(files, key=_mtime, default=None)


def _mtime(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _is_named(run: Path, logs: Path, name: str) -> bool:
    """Whether the run has this name. If its config is damaged, the name of its folder decides."""
    try:
        return read_config(run / CONFIG).get("name") == name
    except DataError:
        return name in run.relative_to(logs).parts


def _job_of(run: Path) -> str | None:
    file = run / SLURM_JOB
    return file.read_text().strip() if file.is_file() else None


def sweep_folder() -> Path | None:
    """Folder of the sweep, if this run is a job of a sweep."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).absolute()
    return None


def announce_sweep(folder: Path) -> None:
    """At the first job of a resumed sweep, log the number of finished and stopped jobs."""
    begun = [config.parent for config in folder.glob(f"*/{CONFIG}")]
    if begun and HydraConfig.get().job.num == 0:
        finished = sum((job / SUMMARY).exists() for job in begun)
        stopped = sum((job / LAST).exists() and not (job / SUMMARY).exists() for job in begun)
        log.info(f"Sweep {folder}: {finished} of its jobs are finished and skipped, {stopped} resume from their last "
                 "checkpoint, all others start")  # fmt: skip


def find_job(sweep: Path, cfg: DictConfig) -> Path | None:
    """Folder of the sweep's job that has the same config. Its number may differ."""
    wanted = _comparable(yaml.safe_load(config_text(cfg)))
    for config in sorted(sweep.glob(f"*/{CONFIG}")):
        try:
            if _comparable(read_config(config)) == wanted:
                return config.parent
        except DamageError as damage:
            log.warning(f"{damage}: its job starts again")
    return None


def _comparable(config: dict[str, Any]) -> str:
    """A resolved config without the path of its run's folder, for comparing configs of two folders."""
    return json.dumps(config, sort_keys=True).replace(json.dumps(config["paths"]["run"])[1:-1], "<run>")
