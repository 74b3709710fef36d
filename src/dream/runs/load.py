"""Opens the encoder, store and index of a finished run, which may come from another person."""

import ast
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dream.encoders.base import Encoder
from dream.indexes.snapshot import IndexHandle, IndexSnapshot
from dream.runs.config_file import read_config
from dream.runs.layout import BELONGS_TO, CONFIG, ENCODER, INDEX, LAST, STORES
from dream.runs.paths import relocate
from dream.store.store import Store
from dream.utils.cached_folders import verify
from dream.utils.errors import ConfigError, DamageError, DataError
from dream.utils.runtime import PACKAGE

OWN_PACKAGE = "dream"
REMOTE_CODE = "remote_code"  # an entry of `trust`: the run's language model may bring its own Python code
OPENED = ("encoder", "index", "corpus", "scorer", "data")  # sections of the config that are instantiated here


@dataclass
class FinishedRun:
    """A finished run, opened for searching."""

    cfg: DictConfig
    encoder: Encoder
    store: Store
    index: IndexHandle
    hybrid_weight: float | None = None  # of the dense scores in the hybrid with BM25; None: it was not chosen


def open_run(
    folder: str | Path,
    device: str | torch.device = "cpu",
    trust: Sequence[str] = (),
    data: str | Path | None = None,
) -> FinishedRun:
    """Open encoder, store and last index snapshot of a run.

    Args:
        folder: the run's folder.
        device: the device that the encoder runs on.
        trust: packages, besides this one, whose classes the run's config may name.
        data: the data folder, if it was moved after the run.

    Raises:
        ConfigError: the folder contains no finished run.
        DataError: a file of the run is missing or damaged, or names code that is not trusted.
    """
    folder = Path(folder).expanduser()
    cfg, encoder = open_encoder(folder, device, trust=trust, data=data)
    snapshot, store = open_store(folder, cfg, data)
    index = IndexHandle(instantiate(_for_single_queries(cfg.index)), folder / INDEX)
    with _add_remedy():
        # `open_encoder` has verified the folder, so its record is right about the weights; hashing them takes a while.
        index.open(snapshot, store, encoder.width, _belongs_to(folder)["encoder_fingerprint"])
    return FinishedRun(cfg, encoder, store, index, hybrid_weight(folder))


def _for_single_queries(index: DictConfig) -> DictConfig:
    """FAISS's `Flat` becomes `SQfp16`, with the same results: snapshots are in float16 anyway. It needs half of the
    memory, and finds the neighbours of one query several times faster; those of many queries more slowly."""
    return DictConfig({**index, "factory": "SQfp16"}) if index.get("factory") == "Flat" else index


def open_encoder(
    folder: Path,
    device: str | torch.device,
    name: str = ENCODER,
    trust: Sequence[str] = (),
    data: str | Path | None = None,
) -> tuple[DictConfig, Encoder]:
    """Config and encoder of a finished run: the trained encoder, or `UNTRAINED_ENCODER`."""
    cfg = open_config(folder, trust, data)
    if not (folder / name).exists():
        raise ConfigError("run", folder, f"this run did not keep its {name.replace('_', ' ')} "
                          "(callbacks.final_report.keep_untrained): leave untrained out of systems")  # fmt: skip
    with _add_remedy():
        verify(folder / name)
    encoder_class: Any = get_class(cfg.encoder._target_)
    return cfg, encoder_class.open(folder / name).eval().to(device)


def open_config(folder: Path, trust: Sequence[str] = (), data: str | Path | None = None) -> DictConfig:
    """The config of a finished run. If its data folder has moved, its paths are adapted: see `relocate`.

    Raises:
        ConfigError: the folder contains no finished run.
        DamageError: the config has changed since it was saved.
        DataError: the config names code that is not trusted.
    """
    if not (folder / CONFIG).exists() and not (folder / LAST).exists():
        raise ConfigError("run", folder, "no run is there; train one with dream-train experiment=quickstart")
    with _add_remedy():
        cfg = _load_config(folder / CONFIG, trust)
    if not (folder / ENCODER).exists():
        raise ConfigError("run", folder, "this run did not finish: resume it with dream-train ckpt=last")
    return relocate(cfg, folder, Path(data) if data else None)


def open_store(folder: Path, cfg: DictConfig, data: str | Path | None = None) -> tuple[Path, Store]:
    """(path of the run's last index snapshot, its store). The store is first searched in `data`."""
    snapshots = sorted((folder / INDEX).glob("snapshot-*"))
    if not snapshots:
        raise DataError(f"{folder / INDEX}: no index snapshot; resume the run with dream-train ckpt=last")
    content = _belongs_to(folder)
    store_hash, fingerprint = content["store"], content["encoder_fingerprint"]
    places = [*([Path(data) / STORES] if data else []), Path(cfg.data.stores_dir)]
    stores = [path for place in places for path in place.glob(f"*-{store_hash}") if path.is_dir()]
    if not stores:
        raise DataError(f"{places[-1]}: the store {store_hash} of this run is not there; name its data folder with "
                        "paths.data=FOLDER, or train again, which rebuilds it")  # fmt: skip
    with _add_remedy():
        verify(stores[0])
    return _snapshot_of(snapshots, fingerprint), Store(stores[0], cfg.corpus.get("language"))


def hybrid_weight(folder: Path) -> float | None:
    """Weight of the dense scores in the hybrid with BM25. None if the run had no held-out questions to choose it."""
    return _belongs_to(folder).get("hybrid_weight")


def _belongs_to(folder: Path) -> dict[str, Any]:
    file = folder / ENCODER / BELONGS_TO
    try:
        content = json.loads(file.read_text())
        return content | {key: content[key] for key in ("store", "encoder_fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read; this is not the encoder folder that the run wrote") from error


def _snapshot_of(snapshots: Sequence[Path], fingerprint: str) -> Path:
    """The newest snapshot by the encoder with this fingerprint, else the newest. A run that is trained further has a
    newer snapshot than the encoder that it saved when it finished."""
    for path in reversed(snapshots):
        try:
            if IndexSnapshot(path).encoder_fingerprint == fingerprint:
                return path
        except DataError:  # damaged, which is reported if it is opened
            continue
    return snapshots[-1]


def _load_config(file: Path, trust: Sequence[str]) -> DictConfig:
    try:
        read_config(file)
        cfg = OmegaConf.load(file)
        assert isinstance(cfg, DictConfig)
        # Resolved, so that no interpolation can bring in a class after the check.
        parts: dict[str, Any] = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in OPENED}
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{file}: not the config of a run ({' '.join(str(error).split())[:120]})") from error
    trusted = (OWN_PACKAGE, *trust)
    for target in _targets(list(parts.values())):
        if not _is_trusted_class(str(target), trusted):
            package = str(target).partition(".")[0]
            remedy = "" if package in trusted else f"; add trust=[{package}] only if that code is yours"
            raise DataError(f"{file}: refused, because it names {target}, which is not a class that "
                            f"{' or '.join(trusted)} defines{remedy}")  # fmt: skip
    for part in parts.values():
        if REMOTE_CODE not in trust and part.get("trust_remote_code"):
            part["trust_remote_code"] = False  # the one who trained the run may have trusted it
    if str(parts["corpus"].get("_target_")).partition(".")[0] == OWN_PACKAGE:
        parts["corpus"].setdefault("language", None)  # runs of before this key counted plain words
    for name, part in parts.items():
        cfg[name] = part
    return cfg


def _is_trusted_class(target: str, packages: Sequence[str]) -> bool:
    """Whether the name is a class that one of these packages defines: no function, and nothing that it imports."""
    package, dot, _ = target.partition(".")
    if not dot or package not in packages:
        return False
    if package == OWN_PACKAGE and _is_class_of_own_file(target):
        return True
    try:
        found: Any = get_object(target)
    except Exception:  # no such name
        return False
    return isinstance(found, type) and found.__module__.partition(".")[0] in packages


def _is_class_of_own_file(target: str) -> bool:
    """Whether a file of this package defines the class, found out without running the file's imports."""
    module, _, name = target.rpartition(".")
    file = (PACKAGE.parent / Path(*module.split("."))).with_suffix(".py")
    if not file.is_relative_to(PACKAGE) or not file.is_file():
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in ast.parse(file.read_bytes()).body)


def _targets(node: Any) -> Iterator[Any]:
    """Every `_target_` in a node of plain containers."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _targets(value)


@contextmanager
def _add_remedy() -> Iterator[None]:
    try:
        yield
    except DamageError as damage:
        remedy = "dream-train ckpt=last, with the run's overrides, rebuilds it"
        raise DamageError(f"{damage}; {remedy}") from damage
