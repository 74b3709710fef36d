"""A run's folder belongs to one process at a time: how it is claimed, found again and gone on with."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from dream.checkpoints import verify_checkpoint
from dream.errors import ConfigError, DamageError, DataError
from dream.files import discard, sweep, try_lock, unlock, write_bytes
from dream.runtime import say

LAST = Path("checkpoints") / "last.ckpt"
CONFIG = "config.yaml"
CHECKPOINTS = ("checkpoints/*.ckpt", "hpc_ckpt_*.ckpt")  # what a run goes on from, the newest of them
SEAL = "# sha256 of what follows, delete this line when you change it: "  # first line of a saved config
MASK = "***"
SECRET_KEY = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_?key|access_?key|private_?key)$", re.I)
SHORTEST_SECRET = 8  # characters; shorter values of the environment would mask words at random


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to go on from: the one that `ckpt` names, or, where SLURM starts a job again, the job's own.

    `last` is that of the newest run of this experiment that has one; `auto` that of the newest run, if it has one.
    Raises ConfigError where there is none, DataError where it is damaged.
    """
    requeued = os.environ.get("SLURM_JOB_ID") if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else None
    logs = Path(cfg.paths.logs)
    if cfg.ckpt in ("last", "auto"):
        if sweep_folder():
            remedy = "the jobs of a sweep would all go on from one run; hydra.sweep.dir=FOLDER goes on with a sweep"
            raise ConfigError("ckpt", cfg.ckpt, remedy)
        path = _newest(logs, cfg.name, None, with_checkpoint=cfg.ckpt == "last")
        if path is None and cfg.ckpt == "last":
            remedy = f"no run named {cfg.name!r} below {logs} has a checkpoint yet; start without ckpt"
            raise ConfigError("ckpt", "last", remedy)
    elif cfg.ckpt:
        path = Path(cfg.ckpt)
        if not path.is_file():
            raise ConfigError("ckpt", cfg.ckpt, f"no such checkpoint (looked for {path.absolute()})")
    else:
        path = _newest(logs, cfg.name, requeued) if requeued else None
    if path is not None:
        verify_checkpoint(path)
    return path.resolve() if path else None


def goes_on(cfg: DictConfig, checkpoint: Path | None) -> bool:
    """Whether the run of the checkpoint goes on in its own folder; ckpt=FILE starts another one from there."""
    return checkpoint is not None and cfg.ckpt in (None, "last", "auto")


def _newest(logs: Path, name: str, job: str | None, with_checkpoint: bool = True) -> Path | None:
    """Newest checkpoint of the run named `name` that was started last; only of this SLURM job where one is given.

    Without `with_checkpoint`, None where the run that was started last has none.
    """
    begun = {config.parent for config in logs.rglob(CONFIG)}
    begun |= {file.parents[pattern.count("/")] for pattern in CHECKPOINTS for file in logs.rglob(pattern)}
    runs = []
    for run in begun:
        checkpoint = newest_checkpoint(run)
        if (checkpoint or not with_checkpoint) and _is_named(run, logs, name) and job in (None, _job_of(run)):
            runs.append((_written(run / CONFIG) or (_written(checkpoint) if checkpoint else 0), run, checkpoint))
    return max(runs)[2] if runs else None


def newest_checkpoint(run: Path) -> Path | None:
    """Where a run stopped: last.ckpt or SLURM's; where there is neither, which is not the rule, what else there is."""
    files = [*run.glob(str(LAST)), *run.glob("hpc_ckpt_*.ckpt")]
    if not files and (files := list(run.glob("checkpoints/*.ckpt"))):
        say(f"{run / LAST}: missing; going on from what is there beside it")
    return max(files, key=_written, default=None)


def _written(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _is_named(run: Path, logs: Path, name: str) -> bool:
    """A damaged config is written anew when its run goes on: it must not hide the run, so its folder tells the name."""
    try:
        return read_config(run / CONFIG).get("name") == name
    except DataError:
        return name in run.relative_to(logs).parts


def _job_of(run: Path) -> str | None:
    file = run / "slurm_job"
    return file.read_text().strip() if file.is_file() else None


@contextmanager
def claimed(folder: Path, again: bool) -> Iterator[Path]:
    """Hold the run's folder, which no other process may write meanwhile.

    A new run takes the first free name: two runs can begin in the same second. A run that goes on takes its own
    folder; DataError where another process is still training there.
    """
    if getattr(rank_zero_only, "rank", 0):
        yield folder
        return
    number, plain = 1, folder
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder)
        if lock is not None and (again or not _has_begun(folder)):
            break
        if lock is not None:
            unlock(lock)
        if again:
            raise DataError(f"{folder}: this run is still going on in another process; ckpt=FILE starts another run "
                            "from one of its checkpoints")  # fmt: skip
        number += 1
        folder = plain.with_name(f"{plain.name}_{number}")
    try:
        yield folder
    finally:
        unlock(lock)


def _has_begun(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def sweep_folder() -> Path | None:
    """The folder of the sweep that this run is a job of, if it is one."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).absolute()
    return None


def announce_sweep(folder: Path) -> None:
    """Say, with the first job of a sweep that is started again in its folder, what has been done of it."""
    begun = [config.parent for config in folder.glob(f"*/{CONFIG}")]
    if begun and HydraConfig.get().job.num == 0:
        finished = sum((job / "summary.json").exists() for job in begun)
        stopped = sum((job / LAST).exists() and not (job / "summary.json").exists() for job in begun)
        say(f"Sweep {folder}: of its jobs, {finished} are finished and skipped, {stopped} go on from their last "
            "checkpoint, all others start")  # fmt: skip


def find_job(folder: Path, cfg: DictConfig) -> Path | None:
    """The job of the sweep in this folder that has the same config as this one, whatever its number."""
    wanted = _anywhere(yaml.safe_load(_text(cfg)))
    for config in sorted(folder.glob(f"*/{CONFIG}")):
        try:
            if _anywhere(read_config(config)) == wanted:
                return config.parent
        except DamageError as damage:
            say(f"{damage}: its job starts anew")
    return None


def _anywhere(config: dict[str, Any]) -> str:
    """A resolved config without the name of its own run's folder, so that those of two folders can be compared."""
    return json.dumps(config, sort_keys=True).replace(json.dumps(config["paths"]["run"])[1:-1], "<run>")


def tidy(data: Path, logs: Path, run: Path) -> None:
    """Remove what dead processes left half written in the caches and in all runs, unless a run can go on with it."""
    caches = (file for pattern in (".*.tmp", "*/.*.tmp", "*/*/.*.tmp") for file in data.glob(pattern))
    for folder in {file.parent for file in (*caches, *logs.rglob(".*.tmp"))}:
        sweep(folder)
    for partial in logs.rglob("index/.*.partial"):
        folder = partial.parent.parent
        resumable = (folder / LAST).exists() and not (folder / "summary.json").exists()
        if folder != run and not resumable and (lock := try_lock(folder)) is not None:
            discard(partial)
            unlock(lock)


def save_config(cfg: DictConfig, file: Path) -> None:
    """Write the config with everything resolved but secrets: see `without_secrets`. A checksum stands above it."""
    text = _text(cfg).encode()
    write_bytes(file, _seal_line(text) + text)


def _text(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(without_secrets(cfg)))


def read_config(file: Path) -> dict[str, Any]:
    """A saved config as plain containers, nothing in it resolved. Raises DamageError, naming the file, where it is not
    what was saved; one without the line of the checksum was changed on purpose."""
    try:
        raw = file.read_bytes()
        first, _, text = raw.partition(b"\n")
        config = yaml.safe_load(raw)
        if isinstance(config, dict) and (not first.startswith(b"#") or first + b"\n" == _seal_line(text)):
            return config
    except FileNotFoundError as error:
        raise DamageError(f"{file}: missing") from error
    except PermissionError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        pass
    raise DamageError(f"{file}: not the config of a run, or damaged (its first line tells another checksum)")


def _seal_line(text: bytes) -> bytes:
    return f"{SEAL}{hashlib.sha256(text).hexdigest()}\n".encode()


def without_secrets(cfg: DictConfig) -> Any:
    """The resolved config as plain containers, where `${oc.env:NAME}` stays as it was written, and values of keys such
    as `api_key`, and of environment variables so named, are masked."""
    OmegaConf.register_new_resolver("oc.env", lambda *given: f"${{oc.env:{','.join(map(str, given))}}}", replace=True)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    secrets = [value for name, value in os.environ.items() if SECRET_KEY.search(name) and len(value) >= SHORTEST_SECRET]
    return _masked(plain, secrets)


def _masked(node: Any, secrets: list[str]) -> Any:
    if isinstance(node, dict):
        return {
            key: MASK if isinstance(value, str) and value and SECRET_KEY.search(str(key)) else _masked(value, secrets)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_masked(value, secrets) for value in node]
    return MASK if isinstance(node, str) and any(secret in node for secret in secrets) else node
