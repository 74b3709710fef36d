"""A run's folder belongs to one process at a time: how it is claimed, found again and gone on with."""

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
from dream.errors import ConfigError, DataError
from dream.files import discard, sweep, try_lock, unlock, write_bytes

LAST = Path("checkpoints") / "last.ckpt"
MASK = "***"
SECRET_KEY = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_?key|access_?key|private_?key)$", re.I)
SHORTEST_SECRET = 8  # characters; shorter values of the environment would mask words at random


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to go on from: the one that `ckpt` names, or, where SLURM starts a job again, the job's own.

    `last` is that of the newest run of this experiment that has one. Raises ConfigError where there is none, DataError
    where it is damaged.
    """
    requeued = os.environ.get("SLURM_JOB_ID") if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else None
    if cfg.ckpt == "last":
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise ConfigError("ckpt", "last", "the jobs of a sweep would all go on from one run; resume one by one")
        path = _newest(Path(cfg.paths.logs), cfg.name, None)
        if path is None:
            remedy = f"no run named {cfg.name!r} below {cfg.paths.logs} has a checkpoint yet; start without ckpt"
            raise ConfigError("ckpt", "last", remedy)
    elif cfg.ckpt:
        path = Path(cfg.ckpt)
        if not path.is_file():
            raise ConfigError("ckpt", cfg.ckpt, f"no such checkpoint (looked for {path.absolute()})")
    elif not requeued or (path := _newest(Path(cfg.paths.logs), cfg.name, requeued)) is None:
        return None
    verify_checkpoint(path)
    return path.resolve()


def goes_on(cfg: DictConfig, checkpoint: Path | None) -> bool:
    """Whether the run of the checkpoint goes on in its own folder; ckpt=FILE starts another one from there."""
    return checkpoint is not None and cfg.ckpt in (None, "last")


def _newest(logs: Path, name: str, job: str | None) -> Path | None:
    """Newest checkpoint of the run named `name` that was started last; only of this SLURM job where one is given."""
    runs = []
    for config in logs.rglob("config.yaml"):
        found = [*config.parent.glob(str(LAST)), *config.parent.glob("hpc_ckpt_*.ckpt")]
        if found and _is_named(config, name) and job in (None, _job_of(config.parent)):
            runs.append((config.stat().st_mtime_ns, max(found, key=lambda file: file.stat().st_mtime_ns)))
    return max(runs)[1] if runs else None


def _is_named(config: Path, name: str) -> bool:
    """A config that cannot be read is written anew when its run goes on: it must not hide the run."""
    try:
        return yaml.safe_load(config.read_text()).get("name") == name
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return True


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
    return (folder / "config.yaml").exists()


def tidy(data: Path, logs: Path, run: Path) -> None:
    """Remove what dead processes left half written in the caches and in the runs, unless a run can go on with it."""
    for folder in [data, *data.glob("*/"), logs, run, run / "checkpoints", run / "index"]:
        sweep(folder)
    for partial in logs.rglob("index/.*.partial"):
        folder = partial.parent.parent
        resumable = (folder / LAST).exists() and not (folder / "summary.json").exists()
        if folder != run and not resumable and (lock := try_lock(folder)) is not None:
            discard(partial)
            unlock(lock)


def save_config(cfg: DictConfig, file: Path) -> None:
    """Write the config with everything resolved but secrets: see `without_secrets`."""
    write_bytes(file, OmegaConf.to_yaml(OmegaConf.create(without_secrets(cfg))).encode())


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
