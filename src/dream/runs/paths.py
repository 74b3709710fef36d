"""Makes paths in a config absolute, and adapts them if data/ and logs/ have moved."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

FOLDERS = ("paths.data", "paths.logs", "paths.run")
FILES = ("corpus.path", "corpus.queries", "scorer.path")  # always files or folders
NAMED = ("encoder.name", "scorer.name", "corpus.dataset")  # folders, or names on a hub
RESUME_WORDS = ("last", "auto")  # values of ckpt that are not files


def make_absolute(cfg: DictConfig) -> None:
    """Expand `~` and make all paths of a config absolute, in place. Names on a hub are not changed."""
    for key in (*FOLDERS, *FILES):
        _replace(cfg, key, _absolute)
    qrels = OmegaConf.select(cfg, "corpus.qrels")
    for split in qrels or ():
        _replace(cfg, f"corpus.qrels.{split}", _absolute)
    for key in NAMED:
        _replace(cfg, key, _absolute_folder)
    if cfg.get("ckpt") not in (None, *RESUME_WORDS):
        _replace(cfg, "ckpt", _absolute)
    if isinstance(cfg.get("run"), ListConfig):
        cfg.run = [_absolute(str(run)) for run in cfg.run]
    elif cfg.get("run"):
        _replace(cfg, "run", _absolute)


def relocate(cfg: DictConfig, folder: Path, data: Path | None) -> DictConfig:
    """The config of a run whose data folder may have moved: paths in the old data folder point to the new one.

    Args:
        cfg: a resolved config.
        folder: the current folder of the run. A data folder next to logs/ is found.
        data: the current data folder, if known.
    """
    old = Path(cfg.paths.data)
    if old.is_dir():
        return cfg
    next_to_logs = [parent / "data" for parent in folder.resolve().parents[1:5]]  # a sweep's runs are one level deeper
    places = [*next_to_logs, data] if data else next_to_logs
    new = next((path for path in places if (path / "stores").is_dir()), None)
    return OmegaConf.create(_moved(OmegaConf.to_container(cfg), str(old), str(new))) if new else cfg


def _moved(node: Any, old: str, new: str) -> Any:
    if isinstance(node, dict):
        return {key: _moved(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, old, new) for value in node]
    if isinstance(node, str) and (node == old or node.startswith(f"{old}/")):
        return new + node[len(old) :]
    return node


def _replace(cfg: DictConfig, key: str, change: Any) -> None:
    if OmegaConf.is_missing(cfg, key.partition(".")[0]):
        return
    value = OmegaConf.select(cfg, key, throw_on_missing=False)
    if isinstance(value, str) and (changed := change(value)) != value:
        with open_dict(cfg):
            OmegaConf.update(cfg, key, changed)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _absolute_folder(name: str) -> str:
    """A folder of a model or data set as an absolute path. A name without a local folder may be a name on a hub."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() or name.startswith("~") else name
