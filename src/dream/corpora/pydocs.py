"""Docstrings of the installed Python packages: real technical English that exists wherever this project is installed.

They are read with `ast`; nothing is imported. Labels need no manual work: a docstring's one-line summary is a query,
and the rest of that docstring is its relevant document. The held-out summaries are removed from the corpus.
"""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dream.corpora.base import known_language
from dream.corpora.jsonl import BeirCorpus
from dream.utils.atomic_io import fingerprint
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import ConfigError, require
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

EXTRACTION = 2  # increase it when the extraction below changes; cached corpora are then extracted again
SPLITS = ("dev", "test")
MIN_CHARACTERS = 200  # shorter docstrings are left out
SEED = 0  # chooses the held-out summaries; it is fixed, so all runs have the same queries
LONGEST_MB = 10  # all docstrings are much shorter


class PyDocsCorpus(BeirCorpus):
    """Extracts the docstrings once, writes them in BEIR's layout under `cache_dir`, and then reads these files.

    Args:
        name: Shown in messages; also the first part of the store's name.
        packages: Importable names of installed packages.
        stdlib: Also read the standard library.
        heldout_fraction: Share of the one-line summaries that become queries, for each of dev and test.
        cache_dir: Folder of the extracted corpora.
        language: Language of the docstrings, for BM25: see `known_language`.

    Raises:
        ConfigError: A package is not installed, or a value is not allowed.
    """

    def __init__(
        self,
        name: str,
        packages: list[str],
        stdlib: bool,
        heldout_fraction: float,
        cache_dir: str,
        language: str | None,
    ) -> None:
        known_language(language)
        require(0 < heldout_fraction < 0.5, "corpus.heldout_fraction", heldout_fraction, "choose between 0 and 0.5")
        require(
            bool(packages) or stdlib, "corpus.packages", list(packages), "name a package, or set corpus.stdlib=true"
        )
        description = {
            "extraction": EXTRACTION,
            "python": sys.version_info[:3] if stdlib else None,
            "packages": _versions(packages),
            "settings": [MIN_CHARACTERS, heldout_fraction, SEED],
        }
        self.heldout_fraction = heldout_fraction
        folder = Path(cache_dir).expanduser() / f"pydocs-{fingerprint(description)}"
        if not verify_or_discard(folder):
            self._extract(folder, sorted(packages), stdlib)
        super().__init__(name, str(folder), True, "error", LONGEST_MB, language)

    def _extract(self, folder: Path, packages: list[str], stdlib: bool) -> None:
        files = [(root, file) for root in _roots(packages, stdlib) for file in _python_files(root)]
        log.info(f"Reading the docstrings of {len(packages)} installed packages{' and the standard library' * stdlib}")
        qrels: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
        with new_directory(folder) as unfinished:
            with (unfinished / "corpus.jsonl").open("w", encoding="utf-8") as corpus, _no_garbage_collection():
                for name, docstring in _named_apart(progress(files, unit="file", desc="docstrings")):
                    if len(docstring) < MIN_CHARACTERS:
                        continue
                    summary, body = split_summary(docstring)
                    split = self._split_of(summary) if summary else None
                    if split:
                        qrels[split].setdefault(summary, []).append(name)
                    text = body if split else docstring
                    corpus.write(json.dumps({"_id": name, "title": "", "text": text}) + "\n")
            self._write_labels(unfinished, qrels)

    def _write_labels(self, folder: Path, qrels: dict[str, dict[str, list[str]]]) -> None:
        (folder / "qrels").mkdir()
        with (folder / "queries.jsonl").open("w", encoding="utf-8") as queries:
            for split, by_summary in qrels.items():
                with (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8") as lines:
                    lines.write("query-id\tcorpus-id\tscore\n")
                    for number, (summary, names) in enumerate(by_summary.items()):
                        queries.write(json.dumps({"_id": f"{split}{number}", "text": summary}) + "\n")
                        lines.writelines(f"{split}{number}\t{name}\t1\n" for name in names)

    def _split_of(self, summary: str) -> str | None:
        """The split of a held-out summary, or None. It depends on the text only, so copies have the same split."""
        digest = hashlib.blake2b(f"{SEED} {summary.lower()}".encode(), digest_size=8).digest()
        position = int.from_bytes(digest) / 2**64 / self.heldout_fraction
        return SPLITS[int(position)] if position < len(SPLITS) else None


def split_summary(docstring: str) -> tuple[str, str]:
    """(one-line summary, rest). If the docstring does not begin with a usable summary: ("", docstring)."""
    summary, _, body = docstring.partition("\n\n")
    usable = "\n" not in summary and 20 <= len(summary) <= 160 and len(summary.split()) >= 4 and len(body) >= 100
    if not usable or summary.startswith((">>>", ".. ")) or summary.endswith(")"):
        return "", docstring
    return summary.strip(), body.strip()


def _versions(packages: list[str]) -> dict[str, list[str]]:
    """For each package, the installed distributions that contain it, with their versions."""
    installed = importlib.metadata.packages_distributions()
    for package in packages:
        require(package in installed, "corpus.packages", package, "this package is not installed here")
    return {
        package: [f"{name} {importlib.metadata.version(name)}" for name in sorted(set(installed[package]))]
        for package in packages
    }


def _roots(packages: list[str], stdlib: bool) -> list[Path]:
    roots = [Path(sysconfig.get_paths()["stdlib"])] if stdlib else []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError("corpus.packages", package, "this is not an importable package")
        roots.append(Path(next(iter(spec.submodule_search_locations))))
    return roots


def _python_files(root: Path) -> list[Path]:
    """Source files in `root` and its subfolders, sorted, without tests and without vendored or installed packages."""
    skip = {"site-packages", "tests", "test", "testing", "_vendor", "__pycache__", "idlelib", "lib2to3", "ensurepip"}
    return sorted(f for f in root.rglob("*.py") if not skip.intersection(f.relative_to(root).parts))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees have no reference cycles, and searching for cycles would take longer than parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _named_apart(files: Iterable[tuple[Path, Path]]) -> Iterator[tuple[str, str]]:
    """(name, docstring) of all files. If a name is defined again, e.g. in two branches, a number is added to it."""
    times: Counter[str] = Counter()
    for root, file in files:
        for name, docstring in _docstrings(root, file):
            times[name] += 1
            yield name if times[name] == 1 else f"{name}#{times[name]}", docstring


def _docstrings(root: Path, file: Path) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of the module, its classes and functions, in source order."""
    parts = file.relative_to(root if (root / "os.py").exists() else root.parent).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in the sources
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # packages contain templates that are not valid Python
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield name, inspect.cleandoc(docstring)
        for child in reversed(list(ast.iter_child_nodes(node))):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                pending.append((f"{name}.{child.name}", child))
