"""The house stands in layers: nothing imports upward. Run: pytest tests/test_layers.py"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dream"
# From the bottom up. A file may import from its own layer and from those before it.
LAYERS = ["utils", "batch", "corpora", "store", "encoders", "indexes", "scorers", "candidates", "objectives",
          "data", "runs", "evaluation", "export", "serving", "loggers", "module", "callbacks", "build", "commands",
          "__init__"]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_FILES_AT_THE_TOP = 300, 6


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(source: str) -> set[str]:
    """Layers of this package that a source imports, also within functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dream":
            parts = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            found.update(parts)
        elif isinstance(node, ast.Import):
            found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dream."))
    return found


def climbing(layer: str, source: str) -> set[str]:
    """Layers above `layer` that the source imports."""
    return {other for other in imports_of(source) if LAYERS.index(other) > LAYERS.index(layer)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_imports_upward(file):
    assert climbing(layer_of(file), file.read_text()) == set()


@pytest.mark.parametrize(
    ("layer", "line", "found"),
    [
        ("encoders", "from dream.scorers.base import CausalScorer", {"scorers"}),
        ("runs", "def f():\n    import dream.callbacks.index_refresh", {"callbacks"}),
        ("evaluation", "from dream import build", {"build"}),
        ("callbacks", "from dream.evaluation.metrics import DEPTH", set()),
    ],
)
def test_an_import_that_climbs_is_found(layer, line, found):
    assert climbing(layer, line) == found


def test_every_layer_is_a_room_of_the_house():
    assert {layer_of(file) for file in FILES} == set(LAYERS)


def test_files_are_short_and_few_stand_at_the_top():
    assert {str(file): len(file.read_text().splitlines()) for file in FILES if
            len(file.read_text().splitlines()) > MOST_LINES} == {}  # fmt: skip
    assert len([file for file in PACKAGE.iterdir() if file.is_file()]) <= MOST_FILES_AT_THE_TOP


def test_the_config_is_read_in_few_places():
    """Only the session of a run and the building of its parts follow the training config; commands read their own."""
    readers = {str(file.relative_to(PACKAGE)) for file in FILES if "cfg." in file.read_text()}
    allowed = {"build.py", "__init__.py"} | {f"runs/{name}.py" for name in ("session", "load", "compose", "paths")}
    assert {name for name in readers if not name.startswith("commands/")} <= allowed
