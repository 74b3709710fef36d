"""Writes and reads the resolved config of a run, with a checksum and without secrets."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from dream.utils.atomic_io import write_bytes
from dream.utils.errors import DamageError, DataError
from dream.utils.logging import get_logger

log = get_logger(__name__)

CHECKSUM_LINE = "# sha256 of the lines below; delete this line if you edit them: "  # first line of a saved config
MASK = "***"
SECRET_KEY = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_?key|access_?key|private_?key)$", re.I)
NEEDED_CALLBACK = re.compile(r"\$\{callbacks\.(\w+)")  # in a value that is taken from another callback
SHORTEST_SECRET = 8  # characters; shorter values of environment variables could be parts of ordinary words


def leave_out_dependents(callbacks: DictConfig | None) -> None:
    """Remove callbacks with a value of a removed callback, in place: the config could not be resolved.

    For example, `best_checkpoint` has the interval of `evaluation`, which has that of `index_refresh`.
    """
    if callbacks is None:
        return
    plain: Any = OmegaConf.to_container(callbacks, resolve=False)

    def lacks(config: Any) -> str | None:
        return next((name for name in NEEDED_CALLBACK.findall(str(config)) if plain.get(name) is None), None)

    removed: list[str] = []
    while found := {name: needed for name, config in plain.items() if (needed := lacks(config))}:
        for name, needed in found.items():
            plain[name] = callbacks[name] = None
            removed.append(f"callbacks.{name}, which needs callbacks.{needed}")
    if removed:
        log.info(f"Left out: {'; '.join(removed)}")


def save_config(cfg: DictConfig, file: Path) -> None:
    """Write a checksum and the resolved config, without secrets (see `without_secrets`)."""
    text = config_text(cfg).encode()
    write_bytes(file, _checksum_line(text) + text)


def config_text(cfg: DictConfig) -> str:
    """The resolved config as YAML, without secrets."""
    return OmegaConf.to_yaml(OmegaConf.create(without_secrets(cfg)))


def read_config(file: Path) -> dict[str, Any]:
    """Read a saved config as plain containers, without resolving interpolations.

    Raises:
        DamageError: the file is missing or has changed. A file without checksum line counts as edited on purpose.
    """
    try:
        raw = file.read_bytes()
        first, _, text = raw.partition(b"\n")
        config = yaml.safe_load(raw)
        if isinstance(config, dict) and (not first.startswith(b"#") or first + b"\n" == _checksum_line(text)):
            return config
    except FileNotFoundError as error:
        raise DamageError(f"{file}: missing") from error
    except PermissionError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        pass
    raise DamageError(f"{file}: not the config of a run, or damaged (the checksum in its first line does not match)")


def _checksum_line(text: bytes) -> bytes:
    return f"{CHECKSUM_LINE}{hashlib.sha256(text).hexdigest()}\n".encode()


def without_secrets(cfg: DictConfig) -> Any:
    """The resolved config as plain containers, with secrets masked.

    `${oc.env:NAME}` is not resolved. Values of keys such as `api_key` and of environment variables with such names are
    masked.
    """
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
