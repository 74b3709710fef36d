"""README.md is short, and its file tree is complete. Run: pytest tests/test_readme.py"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MOST_LINES = 200
TREE = README.partition("    src/dream/\n")[2].partition("\n\n")[0]


def names_in_tree(indent: int) -> set[str]:
    """Folders and files that begin a line of the tree at this indentation; `data/ logs/` are two."""
    lines = re.findall(rf"^ {{{indent}}}((?:[\w.]+/? ?)+)(?:  |$)", TREE, flags=re.MULTILINE)
    return {name for line in lines for name in line.split()}


def test_it_is_short():
    assert len(README.splitlines()) <= MOST_LINES


def test_the_first_screen_shows_commands_and_python():
    first = "\n".join(README.splitlines()[:30])
    assert all(text in first for text in ("make train", "make test", "import dream", "dream.load(", "encode_queries"))


def test_the_tree_names_everything_at_the_top_of_the_package():
    folder = ROOT / "src" / "dream"
    there = {f"{path.name}/" for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {path.name for path in folder.glob("*.py")}
    assert names_in_tree(6) == there


def test_the_tree_names_the_folders_of_the_project():
    named = names_in_tree(4)
    assert {"conf/", "docs/", "tests/", "benchmarks/", "data/", "logs/"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_files_named_in_the_tree_are_in_their_folders():
    """An annotation may name modules: `exclusion.py`, or without the suffix in a list that belongs to one folder."""
    files = {path.name for path in (ROOT / "src" / "dream").rglob("*.py")}
    assert [name for name in re.findall(r"\b\w+\.py\b", TREE) if name not in files] == []


def test_every_experiment_and_objective_is_shown():
    experiments = [path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")]
    assert "quickstart" in experiments
    assert [name for name in experiments if f"experiment={name}" not in README] == []
    objectives = [path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml")]
    assert [name for name in objectives if f"| `{name}` |" not in README] == []


def test_its_commands_are_installed():
    project = (ROOT / "pyproject.toml").read_text()
    scripts = set(re.findall(r"dream-[a-z]+", README))
    assert {"dream-train", "dream-search", "dream-evaluate"} <= scripts
    assert [script for script in scripts if f"{script} =" not in project] == []
