"""A loss, a corpus, an encoder and a candidate source of one's own: one Python file and one YAML each.

They are added to a fork, and from outside the package. Run: pytest tests/test_adding_parts.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LOSS = '''
from dream.objectives.base import LossInputs, LossOutput, Objective


class Margin(Objective):
    """The own continuation must be more similar than the hardest candidate, by `margin`."""

    needs_candidates = needs_continuation = True

    def __init__(self, margin: float, temperature: float) -> None:
        self.margin, self.temperature = margin, temperature

    def __call__(self, inputs: LossInputs) -> LossOutput:
        own_B = inputs.continuation_sim_BA.diagonal()
        hardest_B = inputs.candidates.sim_BU.masked_fill(~inputs.candidates.allowed_BU, -1).amax(1)
        return LossOutput((self.margin + hardest_B - own_B).clamp_min(0).mean(), inputs.candidates.scores.loglik_SK)
'''

CORPUS = '''
from dream.corpora.base import Document, Labels


class Numbers:
    """Documents about numbers, with a labelled query each."""

    deduplicate, on_bad_document = True, "error"

    def __init__(self, name: str, documents: int) -> None:
        self.name, self.count = name, documents

    def fingerprint(self):
        return {"kind": "numbers", "count": self.count}

    def size_bytes(self):
        return 300 * self.count

    def documents(self, refuse=None):
        for n in range(self.count):
            yield Document(f"n{n}", f"Number {n}", f"the number n{n} follows n{n - 1} and is written n{n} here. " * 8)

    def splits(self):
        return ["dev"]

    def labels(self, split):
        queries = {f"q{n}": f"which is n{n}" for n in range(self.count)}
        return Labels(queries, {f"q{n}": {f"n{n}": 1} for n in range(self.count)})
'''

ENCODER = '''
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoTokenizer

from dream.encoders.base import Encoder


class Bag(Encoder):
    """Mean of random token vectors, which are trained."""

    def __init__(self, width: int, max_tokens: int) -> None:
        super().__init__()
        self.width, self.max_tokens = width, max_tokens

    def initialize(self, store, token_embeddings) -> None:
        self.table = torch.nn.Parameter(torch.randn(len(self.tokenizer), self.width))

    def forward(self, batch, side):
        mask_BT1 = batch.mask_BT[..., None]
        return F.normalize((F.embedding(batch.ids_BT, self.table) * mask_BT1).sum(1), dim=1)

    def save(self, folder) -> None:
        save_file({"table": self.table.detach()}, folder / "model.safetensors")
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def open(cls, folder):
        table = load_file(folder / "model.safetensors")["table"]
        encoder = cls(table.shape[1], 32)
        encoder.tokenizer, encoder.table = AutoTokenizer.from_pretrained(folder), torch.nn.Parameter(table)
        return encoder
'''

SOURCE = '''
import numpy as np


class Neighbours:
    """Passages that stand near the window's document in the corpus."""

    def prepare(self, store, index) -> None:
        self.store = store

    def propose(self, windows, query_BD, k, step):
        documents_B = windows.document_ids_B.cpu().numpy()
        first_B = np.searchsorted(self.store.passage_documents, documents_B)
        return (first_B[:, None] + np.arange(-2 * k, 2 * k)) % len(self.store.passage_documents)
'''

# group → (Python file, its code, class, the YAML below `_target_`)
PARTS = {
    "objective": ("objectives/margin.py", LOSS, "Margin", "margin: 0.2\ntemperature: 0.05\n"),
    "corpus": ("corpora/numbers_corpus.py", CORPUS, "Numbers", "name: numbers\ndocuments: 60\n"),
    "encoder": ("encoders/bag.py", ENCODER, "Bag", "width: 24\nmax_tokens: 32\n"),
    "candidates": ("candidates/neighbours.py", SOURCE, "Neighbours", ""),
}
SOURCE_YAML = """defaults: [mixture, _self_]
schedule:
  bm25: {{start: 0.5, end: 0.5}}
  mine: {{start: 0.5, end: 0.5}}
sources:
  mine:
    _target_: {target}
"""


def write_yaml(conf: Path, group: str, target: str, rest: str) -> None:
    text = SOURCE_YAML.format(target=target) if group == "candidates" else f"_target_: {target}\n{rest}"
    (conf / group).mkdir(parents=True, exist_ok=True)
    (conf / group / "mine.yaml").write_text(text)


@pytest.fixture(params=["a fork", "outside"])
def parts(request, tmp_path) -> tuple[list[str], dict[str, str]]:
    """(arguments, environment) of a command that finds the four parts."""
    if request.param == "a fork":
        for name in ("src", "conf"):
            shutil.copytree(ROOT / name, tmp_path / "fork" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for group, (file, code, cls, rest) in PARTS.items():
            (tmp_path / "fork" / "src" / "dream" / file).write_text(code)
            target = f"dream.{file.removesuffix('.py').replace('/', '.')}.{cls}"
            write_yaml(tmp_path / "fork" / "conf", group, target, rest)
        return [], {"PYTHONPATH": str(tmp_path / "fork" / "src")}
    for group, (file, code, cls, rest) in PARTS.items():
        module = Path(file).stem
        (tmp_path / "my_parts").mkdir(exist_ok=True)
        (tmp_path / "my_parts" / f"{module}.py").write_text(code)
        write_yaml(tmp_path / "my_conf", group, f"my_parts.{module}.{cls}", rest)
    return ["--config-dir", str(tmp_path / "my_conf")], {"PYTHONPATH": f"{ROOT / 'src'}:{tmp_path}"}


def run(module: str, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"dream.commands.{module}", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_each_part_takes_one_python_file_and_one_yaml(parts, tmp_path, llama_folder):
    config_dir, environment = parts
    paths = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]
    chosen = [f"{group}=mine" for group in PARTS]
    small = ["scorer=hf", f"scorer.name={llama_folder}", "scorer.scoring.compile=false", "data.batch_size=4",
             "data.context_tokens=12", "data.target_tokens=8", "candidates.k=4", "candidates.scored_windows=2",
             "trainer.max_steps=2", "trainer.accelerator=cpu", "evaluation.report_split=dev"]  # fmt: skip
    trained = run("train", [*config_dir, *chosen, *paths, *small], environment)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "training the bag encoder on corpus numbers with the margin objective" in trained.stdout
    assert "hybrid" in trained.stdout

    found = run("search", [*paths, "n7", "k=1"], environment)
    if config_dir:  # code from outside the package is used only if it is trusted
        assert "add trust=[my_parts] only if that code is yours" in found.stderr
        found = run("search", [*paths, "n7", "k=1", "trust=[my_parts]"], environment)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Number" in found.stdout

    shown = run("train", [*config_dir, "--help"], environment)
    assert shown.stdout.count("mine") == len(PARTS)
