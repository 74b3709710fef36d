"""Reads the comments of the YAML files, for `--help` (without importing Hydra) and for the configuration page."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

KEY_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w@/.]+):(?: +(?P<value>[^#\s].*?))??(?:\s+# (?P<comment>.*))?$")
WIDTH = 40  # columns of key and value
COLUMNS = 110


class Key(NamedTuple):
    """A key of a YAML file: its value as written, and the comment on the same line."""

    value: str
    comment: str


def read_keys(file: Path) -> dict[str, Key]:
    """The keys of a YAML file by dotted name, in file order, without the defaults list."""
    keys: dict[str, Key] = {}
    path: list[tuple[int, str]] = []
    for line in file.read_text().splitlines():
        if (match := KEY_LINE.match(line)) is None:
            continue
        indent = len(match["indent"])
        path = [(depth, key) for depth, key in path if depth < indent] + [(indent, match["key"])]
        name = ".".join(key for _, key in path)
        if not name.startswith("defaults"):
            keys[name] = Key(match["value"] or "", match["comment"] or "")
    return keys


def choices(folder: Path) -> list[str]:
    """The choices of a config group; files that begin with an underscore are shared parts."""
    return sorted(file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_"))


def default_choices(file: Path) -> dict[str, str]:
    """Group → default choice, from the defaults list of a command's config, and of a config that it includes."""
    entries = []
    for entry in yaml.safe_load(file.read_text())["defaults"]:
        if isinstance(entry, dict):
            entries.append(entry)
        elif entry != "_self_":
            entries += [{group: choice} for group, choice in default_choices(file.with_name(f"{entry}.yaml")).items()]
    chosen = {
        group.removeprefix("override /").removeprefix("override "): choice
        for entry in entries
        for group, choice in entry.items()
        if not group.startswith("optional")
    }
    return {group: str(choice) for group, choice in chosen.items() if group not in ("hydra", "paths")}


def help_text(config_dirs: Sequence[Path], command: str, about: str, keys: Sequence[str]) -> str:
    """The text of --help: the purpose of a command, its config groups, and the keys that are changed most.

    Args:
        config_dirs: the project's conf folder, then folders of --config-dir.
        command: name of the command's config, without .yaml.
        about: first paragraph, with example commands.
        keys: dotted names; values and descriptions are read from the YAML files.
    """
    main = config_dirs[0] / f"{command}.yaml"
    groups = default_choices(main)
    lines = [about.strip(), ""]
    plain = {group: default for group, default in groups.items() if "@" not in group}
    if plain:
        lines += ["Choices (group=choice, the default first):"]
        for group, default in plain.items():
            names = [name for folder in config_dirs for name in choices(folder / group)]
            others = [name for name in dict.fromkeys(names) if name != default]
            listed = ", ".join([*([default] if default != "None" else []), *others])
            lines += textwrap.wrap(listed, COLUMNS, initial_indent=f"  {group:<12} ", subsequent_indent=" " * 15)
        lines.append("")
    lines.append("Often changed (key=value):")
    for name in keys:
        key = _find(config_dirs[0], main, groups, name)
        comment = key.comment.partition(";")[0].partition(". ")[0]
        shown = f"  {name}={key.value}".replace("${paths.logs}", "logs").ljust(WIDTH)
        lines += textwrap.wrap(f"{shown} {comment}", COLUMNS, subsequent_indent=" " * (WIDTH + 1), drop_whitespace=True)
    footer = "All keys: --cfg job    Your own configs: --config-dir FOLDER    Hydra: --hydra-help"
    return "\n".join([*lines, "", footer])


def _find(conf: Path, main: Path, groups: dict[str, str], name: str) -> Key:
    """The key, found in the command's own YAML, in the default choice of its group, or in a file that it inherits."""
    group, _, inner = name.partition(".")
    own = read_keys(main)
    if name in own or group not in groups:
        return own[name]
    if group == "callbacks":
        return read_keys(conf / group / f"{inner.partition('.')[0]}.yaml")[inner]
    keys: dict[str, Key] = {}
    for choice in ("_base", "mixture", groups[group]):
        if (file := conf / group / f"{choice}.yaml").exists():
            keys |= read_keys(file)
    return keys[inner]
