"""Hooks of mkdocs: the configuration reference from conf/, and pages that are files of the top folder.

`make docs` calls `on_page_markdown` for each page. Nothing here imports mkdocs, so that tests can call it, too.
"""

import atexit
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
sys.path.insert(0, str(ROOT / "src"))  # mkdocs may run in an environment without this package

from dream.commands.config_help import read_keys  # noqa: E402

TABLES = "<!-- tables -->"  # replaced by the tables of the configuration reference
INCLUDED = {  # page → file of the top folder that is shown as this page
    "results.md": "RESULTS.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
COMMANDS = {  # config of a command → the command
    "train": "dream-train",
    "pretrain": "dream-pretrain",
    "rank_heads": "dream-heads",
    "evaluate": "dream-evaluate",
    "search": "dream-search",
    "export": "dream-export",
    "serve": "dream-serve",
    "inspect": "dream-inspect",
    "tune": "dream-tune",
}
OVERLAYS = ("experiment", "debug")  # groups whose files change keys of other groups
LAST = ("logger", "paths", "hydra")  # groups that people change least


class Row(NamedTuple):
    """A key of the reference."""

    key: str
    default: str
    meaning: str


def on_config(config: Any) -> None:
    """Called by mkdocs first. Let mkdocstrings read a copy of the package that it understands.

    Each folder gets an __init__.py: Python needs none (PEP 420), but mkdocstrings skips folders without one. It shows
    "Examples:" as code, but "Example:" as prose.
    """
    copy = Path(tempfile.mkdtemp(prefix="dream-docs-"))
    shutil.copytree(ROOT / "src" / "dream", copy / "dream", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in filter(Path.is_dir, (copy / "dream").rglob("*")):
        (folder / "__init__.py").touch()
    for file in (copy / "dream").rglob("*.py"):
        file.write_text(re.sub(r"^( +)Example:$", r"\1Examples:", file.read_text(), flags=re.MULTILINE))
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(copy)]
    atexit.register(shutil.rmtree, copy, ignore_errors=True)


on_config.mkdocs_priority = 100  # type: ignore[attr-defined]  # before mkdocstrings reads its paths


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of a page; returns the text that is shown."""
    name = page.file.src_uri
    if name in INCLUDED:
        return included(ROOT / INCLUDED[name])
    return markdown.replace(TABLES, reference()) if TABLES in markdown else markdown


def included(file: Path) -> str:
    """The text of a file of the top folder, with links as they are from docs/."""
    pages = {name: page for page, name in INCLUDED.items()} | {"README.md": "index.md"}

    def link(match: re.Match[str]) -> str:
        target, mark, anchor = match[1].partition("#")
        return f"]({pages.get(target, target.removeprefix('docs/'))}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, file.read_text())


def reference() -> str:
    """Markdown of the whole configuration reference."""
    groups = [folder.name for folder in sorted(CONF.iterdir()) if folder.is_dir()]
    plain = [group for group in groups if group not in (*OVERLAYS, *LAST)]
    parts = ["## Commands", *(section(CONF / f"{name}.yaml", command, "") for name, command in COMMANDS.items())]
    for group in (*plain, *(group for group in LAST if group in groups)):
        parts.append(f"## {group}")
        parts += [section(file, title(group, file), group) for file in files(CONF / group)]
    parts += [f"## {group}\n\n{overlays(CONF / group)}" for group in OVERLAYS]
    return "\n\n".join(part for part in parts if part)


def files(folder: Path) -> list[Path]:
    """The YAML files of a group; those that choices share come first."""
    return sorted(folder.glob("*.yaml"), key=lambda file: (not file.stem.startswith("_"), file.stem))


def title(group: str, file: Path) -> str:
    """`group=choice`, or what a shared file or a part of callbacks is."""
    if file.stem.startswith("_"):
        return "Shared by the choices below"
    if group == "callbacks" and file.stem != "default":
        return f"callbacks.{file.stem}"
    return f"{group}={file.stem}"


def section(file: Path, heading: str, group: str) -> str:
    """A heading, what the file says about itself, its class, what it inherits, and the table of its keys."""
    rows = list(rows_of(file, group))
    about = [heading_comment(file)]
    if group == "callbacks" and rows:  # the file has one key, the callback
        about.append(sentence(escaped(rows[0].meaning)))
        about.append(class_line(rows[0].default))
        rows = rows[1:]
    content = yaml.safe_load(file.read_text()) or {}
    about.append(class_line(content.get("_target_", "")))
    if parents := inherited(file):
        about.append(f"Starts from {', '.join(f'`{name}`' for name in parents)}.")
    parts = [f"### {heading}", " ".join(filter(None, about)), table(rows) if rows else ""]
    return "\n\n".join(filter(None, parts))


def sentence(text: str) -> str:
    """A comment as a sentence."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def class_line(name: str) -> str:
    """A sentence with the name of a class, for a `_target_`."""
    return f"Class: `{name.strip('`')}`." if name else ""


def rows_of(file: Path, prefix: str) -> Iterator[Row]:
    """The keys of a YAML file with their dotted names, as one writes them on the command line."""
    content = yaml.safe_load(file.read_text()) or {}
    above = comments_above(file)
    for name, key in read_keys(file).items():
        if name.split(".")[-1].startswith("_"):  # Hydra's own: `_target_` and the like
            continue
        value = value_at(content, name)
        meaning = " ".join(filter(None, [above.get(name, ""), key.comment]))
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict) and "_target_" in value:
            yield Row(full, f"`{value['_target_']}`", meaning)
        elif not isinstance(value, dict) or key.value:
            yield Row(full, shown(value, key.value), meaning)
        elif meaning:
            yield Row(full, "", meaning)


def value_at(content: Any, name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def shown(value: Any, written: str) -> str:
    """A default as code: as the YAML writes it, or a list in one line."""
    if isinstance(value, list) and not written:
        written = f"[{', '.join(map(str, value))}]"
    return f"`{written}`" if written else ""


def heading_comment(file: Path) -> str:
    """The comment lines at the top of a YAML file, before the first key, without Hydra's package line."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return escaped(" ".join(line for line in lines if not line.startswith(("@package", "dream-"))))


def comments_above(file: Path) -> dict[str, str]:
    """Key → the comment lines directly above it, except those at the top of the file."""
    found: dict[str, str] = {}
    held: list[str] = []
    started = False
    for line in file.read_text().splitlines():
        if line.lstrip().startswith("#"):
            held += [line.lstrip().removeprefix("#").strip()] if started else []
            continue
        started = True
        key = re.match(r"([\w@/.]+):", line)
        if key and held:
            found[key[1]] = " ".join(held)
        held = []
    return found


def inherited(file: Path) -> list[str]:
    """Files of the same group that the file starts from."""
    defaults = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
    return [name for name in defaults if isinstance(name, str) and name != "_self_"]


def overlays(folder: Path) -> str:
    """Each overlay with its purpose, its command, and all keys that it sets, as overrides."""
    rows = []
    for file in sorted(folder.rglob("*.yaml")):
        name = str(file.relative_to(folder).with_suffix(""))
        command = next((line[2:] for line in file.read_text().splitlines() if line.startswith("# dream-")), "")
        purpose = heading_comment(file) + (f"<br>`{command}`" if command else "")
        inner = f"{file.parent.name}." if file.parent != folder and "@package" not in file.read_text() else ""
        changes = "<br>".join(f"`{item if item.startswith('+') else inner + item}`" for item in sets(file))
        rows.append(f"| `{name}` | {purpose} | {changes} |")
    return "\n".join(["| choice | purpose | sets |", "|---|---|---|", *rows])


def sets(file: Path) -> list[str]:
    """What an overlay changes, as overrides; `+name` is another overlay that it starts from."""
    content = yaml.safe_load(file.read_text()) or {}
    found = []
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):  # another choice of a group
            found += [f"{group.removeprefix('override /')}={choice}" for group, choice in entry.items()]
        elif entry != "_self_":
            found.append(f"+{entry.removeprefix('/experiment/')}")
    found += [f"{name}={key.value}" for name, key in read_keys(file).items() if not isinstance(
        value_at(content, name), dict) or key.value]  # fmt: skip
    return found


def table(rows: list[Row]) -> str:
    """A Markdown table of keys."""
    lines = [f"| `{row.key}` | {row.default.replace('|', chr(92) + '|')} | {escaped(row.meaning)} |" for row in rows]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines])


def escaped(text: str) -> str:
    """Plain text for a cell of a Markdown table."""
    return re.sub(r"([\\|*_\[\]<])", r"\\\1", text)
