"""The documentation is true: commands compose, keys and files exist, examples run. Run: pytest tests/test_docs.py"""

import ast
import importlib.util
import re
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

import dream
from dream.runs.compose import compose_run

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "data/README.md", ROOT / "logs/README.md"])
COMMANDS = {
    "dream-train": "train",
    "dream-pretrain": "pretrain",
    "dream-heads": "rank_heads",
    "dream-evaluate": "evaluate",
    "dream-search": "search",
    "dream-export": "export",
    "dream-serve": "serve",
    "dream-inspect": "inspect",
    "dream-tune": "tune",
}
# Names that existed before 0.2.0: only the changelog may contain them.
OLD_NAMES = re.compile(
    r"callbacks\.refresh\b|callbacks\.supervision|callbacks\.guards|lead_share|scorer_share|supervision=|sweep=|benchmark="
    r"|benchmark\.path|index=torch|scorer\.cache=|keep_untrained=|conf/ablation|python -m dream\.(?!commands)"
    r"|\bEvidence\b|scorer\.tokenizer|scorer\.architecture|gain_windows"
)
CODE_LINE = re.compile(r"^(?:[A-Z_]+=\S+ +)*(dream-[a-z]+\b.*)$")
MY_LOSS = {"objective/my_loss.yaml": "_target_: dream.objectives.info_nce.InfoNCE\ntemperature: 0.1\n"}  # of README


def hooks() -> Any:
    """The module docs/hooks.py."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """A page without what it quotes of the past: the first column of the changelog's tables."""
    text = page.read_text()
    return re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE) if page.name == "CHANGELOG.md" else text


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of fenced blocks, then of indented blocks."""
    yield from re.findall(r"^```(.*?)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:^ {4,}\S.*\n)+", rest, flags=re.MULTILINE):
        yield "", re.sub(r"^ +", "", block, flags=re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """Every dream-* command line, with shell variables of its block replaced."""
    blocks = [code for info, code in code_blocks(text) if not info.startswith(("python", "yaml"))]
    for block in blocks:
        variables = {"ALL": "ablation/kl_posterior,ablation/marginal"}  # the shell lists all settings
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if assignment := re.fullmatch(r"([A-Z]+)=([^\s$\"]+|\"[^\"$]*\")", line):
                variables[assignment[1]] = assignment[2].strip('"')
            if command := CODE_LINE.match(line):
                yield command[1]
    inline = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", inline):
        if command := CODE_LINE.match(" ".join(span.split())):
            yield command[1]


ALL_COMMANDS = sorted({line for page in PAGES for line in commands(prose(page))})


def overrides_of(line: str) -> tuple[str, list[str]]:
    """(config name, overrides) of a command line, without options and without the question of dream-search."""
    script, *words = shlex.split(line, comments=True)
    words = [word for word in words if word not in ("-m", "--help", "-sc", "install=bash", "--cfg", "job")]
    if "--config-dir" in words:
        at = words.index("--config-dir")
        del words[at : at + 2]
    words = [word for word in words if not word.startswith(("hydra/launcher", "hydra.launcher"))]  # an optional plugin
    if script == "dream-search":
        words = [word for word in words if "=" in word]
    return COMMANDS[script], words


def choices_of(words: list[str]) -> Iterator[list[str]]:
    """The overrides of a sweep as those of single jobs: each value occurs in one of them."""
    sweeps = [
        list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else [None]
        for parsed in OverridesParser.create().parse_overrides(words)
    ]
    for job in range(max(map(len, sweeps), default=1)):
        yield [
            word if values == [None] else f"{word.partition('=')[0]}={values[min(job, len(values) - 1)]}"
            for word, values in zip(words, sweeps, strict=True)
        ]


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """A folder with all files that docs/adding-parts.md shows, and a config for README's loss."""
    folder = tmp_path_factory.mktemp("examples")
    shown = re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', (ROOT / "docs/adding-parts.md").read_text(), re.M | re.S)
    for name, code in [*shown, *((f"my_conf/{name}", text) for name, text in MY_LOSS.items())]:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    return folder


@pytest.fixture
def parts(examples, monkeypatch) -> Path:
    """The same folder, importable."""
    monkeypatch.syspath_prepend(str(examples))
    yield examples
    for name in [name for name in sys.modules if name.split(".")[0] == "my_parts"]:
        del sys.modules[name]


def test_commands_were_found():
    scripts = {line.split()[0] for line in ALL_COMMANDS}
    assert set(COMMANDS) == scripts
    assert len(ALL_COMMANDS) > 40


@pytest.mark.parametrize("line", ALL_COMMANDS)
def test_a_command_composes(line, examples):
    name, words = overrides_of(line)
    search = f"hydra.searchpath=[file://{examples / 'my_conf'}]"
    for job in choices_of(words):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose(name, [search, *job])


@pytest.mark.parametrize("line", ["dream-train objective=nothing", "dream-train candidates.kk=3", "dream-search kk=3"])
def test_a_wrong_command_is_found(line, examples):
    with pytest.raises(Exception, match="nothing|kk"):
        test_a_command_composes(line, examples)


@cache
def all_keys() -> frozenset[str]:
    """Every key of conf/ by its dotted name, with the sections above it."""
    found: set[str] = set()

    def walk(node: Any, name: str) -> None:
        if name:
            found.add(name)
        for key, child in node.items() if isinstance(node, dict) else ():
            walk(child, f"{name}.{key}".lstrip("."))

    for file in CONF.rglob("*.yaml"):
        folder = file.relative_to(CONF).parts[:-1]
        group = "" if not folder or folder[0] in ("experiment", "debug") else folder[0]
        walk({group: yaml.safe_load(file.read_text())} if group else yaml.safe_load(file.read_text()), "")
    walk({"hf": yaml.safe_load((CONF / "encoder" / "hf.yaml").read_text())}, "")  # encoder@hf of dream-evaluate
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_keys_exist(page):
    sections = {key.split(".")[0] for key in all_keys()}
    named = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", prose(page))
    named = [
        name for name in named if name.split(".")[0] in sections and not name.endswith((".yaml", ".jsonl", ".png"))
    ]
    assert [name for name in named if name not in all_keys()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_old_names_are_gone(page):
    assert OLD_NAMES.findall(prose(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    links = [link for link in links if link and not link.startswith(("http://", "https://", "mailto:"))]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:src|conf|tests|benchmarks|docs|\.github)/[\w./-]+)`", prose(page))
    examples = [name for name in named if re.search(r"my_loss|margin", name)]
    assert [name for name in named if name not in examples and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_code_parses(page):
    for info, code in code_blocks(page.read_text()):
        if info.startswith("python"):
            ast.parse(code)


def test_the_configuration_reference_has_every_key():
    text = hooks().reference()
    missing = []
    for file in sorted(CONF.rglob("*.yaml")):
        folder = file.relative_to(CONF).parts[:-1]
        content = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(file.read_text()) or {}), resolve=False)
        content.pop("defaults", None)
        overlay = bool(folder) and folder[0] in ("experiment", "debug")
        inner = (
            folder[0]
            if folder and not overlay
            else folder[1]
            if overlay and folder[0] == "debug" and folder[1:]
            else ""
        )
        for leaf in leaves(content, inner):
            shown = [f"`{name}=" if overlay else f"`{name}`" for name in (leaf, leaf.rpartition(".")[0])]
            missing += [f"{file}: {leaf}"] if not any(name in text for name in shown) else []
    assert missing == []
    assert hooks().on_page_markdown((ROOT / "docs/configuration.md").read_text(), page_named("configuration.md")) != ""


def leaves(node: dict[str, Any], prefix: str) -> Iterator[str]:
    """Dotted names of all values, without Hydra's own keys."""
    for key, child in node.items():
        name = f"{prefix}.{key}".lstrip(".")
        if isinstance(child, dict) and child:
            yield from leaves(child, name)
        elif not key.startswith("_"):
            yield name


def page_named(name: str) -> Any:
    """What mkdocs gives to a hook."""
    return SimpleNamespace(file=SimpleNamespace(src_uri=name))


def test_the_reference_shows_value_and_meaning(tmp_path):
    file = tmp_path / "choice.yaml"
    file.write_text(
        "# What it is.\ndefaults: [_base, _self_]\n_target_: a.B\n"
        "k: 8 # how many | at most\nnames: # of them\n  - x\n  - y\n"
        "# Above\n# it.\npolicy: error\ninner:\n  _target_: c.D\n  size: 1.5e-3 # metres\n"
    )
    assert hooks().section(file, "group=choice", "group").splitlines() == [
        "### group=choice",
        "",
        "What it is. Class: `a.B`. Starts from `_base`.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
        "| `group.k` | `8` | how many \\| at most |",
        "| `group.names` | `[x, y]` | of them |",
        "| `group.policy` | `error` | Above it. |",
        "| `group.inner` | `c.D` |  |",
        "| `group.inner.size` | `1.5e-3` | metres |",
    ]
    assert "| `candidates.k` | `8` |" in hooks().reference()


@pytest.mark.parametrize("name", ["results.md", "security.md", "contributing.md", "changelog.md"])
def test_included_pages_keep_their_links(name):
    text = hooks().on_page_markdown("", page_named(name))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert len(text) > 500
    assert [link for link in links if not link.startswith("http") and not (ROOT / "docs" / link).exists()] == []


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w-]+\.md", str(config["nav"]))
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_files_for_forges_parse():
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    parsed = {file.name: yaml.safe_load(file.read_text()) for file in files}
    assert {"test.yml", "docs.yml", "bug.yml", "feature.yml", "config.yml"} <= set(parsed)
    for name in ("bug.yml", "feature.yml"):
        assert {"name", "description", "body"} <= set(parsed[name])
    assert parsed["test.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert tomllib.loads((ROOT / ".typos.toml").read_text())


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dream.__version__
    assert f"## [{dream.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    ruff = next(repo["rev"] for repo in repos if "ruff" in repo["repo"])
    assert f"\nruff=={ruff.removeprefix('v')}" in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize(
    ("group", "choice", "name"),
    [
        ("objective", "margin", "Margin"),
        ("corpus", "sqlite", "SqliteCorpus"),
        ("encoder", "mean", "MeanEncoder"),
        ("scorer", "untrained", "UntrainedScorer"),
        ("index", "brute", "BruteForceIndex"),
    ],
)
def test_an_example_can_be_built(group, choice, name, parts, llama_folder, table):
    given = {"corpus": [f"corpus.path={table}"], "scorer": [f"scorer.name={llama_folder}"]}
    cfg = compose_run([f"{group}={choice}", *given.get(group, [])], parts / "my_conf")
    more = {"corpus": None} if group == "scorer" else {}
    assert type(instantiate(cfg[group], **more)).__name__ == name


@pytest.fixture
def table(tmp_path) -> Path:
    """An SQLite database of 40 documents."""
    file = tmp_path / "my.db"
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE documents (id, title, text)")
    for number in range(40):
        words = [f"{syllable}{number % 7}{place % 5}" for place in range(30) for syllable in ("ba", "ko", "mu")]
        row = (number, f"Document {number}", f"document {number} {' '.join(words)}")
        database.execute("INSERT INTO documents VALUES (?, ?, ?)", row)
    database.commit()
    database.close()
    return file


@pytest.mark.slow
def test_the_examples_train_together(parts, llama_folder, table, tmp_path, monkeypatch):
    """One run with the example of every kind; then the run is opened and searched."""
    overrides = [
        "experiment=margin_only", "encoder=mean", "candidates=with_neighbours", "corpus=sqlite", f"corpus.path={table}",
        "scorer=untrained", f"scorer.name={llama_folder}", "scorer.scoring.max_passage_tokens=24",
        "scorer.scoring.compile=false", "candidates.k=4", "data.passage_tokens=24", "data.context_tokens=12",
        "data.min_context_tokens=6", "data.target_tokens=8", "data.batch_size=8", "trainer.max_steps=4",
        "callbacks.index_refresh.every_n_steps=2", f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}",
    ]  # fmt: skip
    environment = {"PYTHONPATH": f"{parts}:{ROOT / 'src'}"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "dream.commands.train", "--config-dir", str(parts / "my_conf"), *overrides]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = tmp_path / "logs" / "latest"
    with pytest.raises(dream.utils.errors.DataError, match="trust=\\[my_parts\\]"):
        dream.load(run)
    retriever = dream.load(run, trust=["my_parts"])
    assert len(retriever.search("document 3", k=3)) == 3
    assert retriever.encode_queries(["document 3"]).shape == (1, 128)


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "candidates.scored_windows" in (tmp_path / "site" / "configuration.html").read_text()
