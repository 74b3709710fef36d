"""Refuses text on the command line for a key that is a number, before anything compares or computes with it."""

import numbers
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dream.utils.errors import ConfigError
from dream.utils.runtime import CONFIG_DIR


def refuse_wrong_types(cfg: DictConfig, config_name: str) -> None:
    """Raise ConfigError if the command line gives text for a key whose default is a number, or true or false.

    Args:
        cfg: the composed config.
        config_name: the command's config in conf/, without .yaml.
    """
    from hydra.core.hydra_config import HydraConfig

    chosen = HydraConfig.get().runtime.choices
    for override in HydraConfig.get().overrides.task:
        key, _, _ = override.lstrip("+").partition("=")
        if key.startswith("trainer."):  # Lightning's Trainer also takes text for numbers, e.g. devices=auto
            continue
        default = _default(key, chosen, config_name)
        if isinstance(default, numbers.Number) and isinstance(value := OmegaConf.select(cfg, key), str):
            needed = "true or false is" if isinstance(default, bool) else "a number is"
            shown = str(default).lower() if isinstance(default, bool) else default
            raise ConfigError(key, value, f"{needed} needed, such as {shown}")


def _default(key: str, chosen: Mapping[str, str], config_name: str) -> Any:
    """The value of a key in the first YAML file that has one. None if there is none."""
    for file, inner in _places(key, chosen, config_name):
        if file.exists():
            value = OmegaConf.select(_load(file), inner, throw_on_resolution_failure=False)
            if value is not None:
                return value
    return None


def _places(key: str, chosen: Mapping[str, str], config_name: str) -> Iterator[tuple[Path, str]]:
    """(file, key in this file): the chosen files of groups, also of a group in another section; the command's file."""
    section, _, inner = key.partition(".")
    for group, choice in chosen.items():
        folder, _, package = group.partition("@")
        if inner and section == (package or folder):
            yield CONFIG_DIR / folder / f"{choice}.yaml", inner
    yield CONFIG_DIR / f"{config_name}.yaml", key


def _load(file: Path) -> DictConfig:
    """A YAML file, merged with the files next to it that its defaults list includes."""
    own = OmegaConf.load(file)
    assert isinstance(own, DictConfig)
    included = [name for name in own.pop("defaults", None) or () if isinstance(name, str) and name != "_self_"]
    return OmegaConf.merge(*(_load(file.with_name(f"{name}.yaml")) for name in included), own)  # type: ignore[return-value]
