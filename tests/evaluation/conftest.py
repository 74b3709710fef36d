"""Two finished runs on the tiny corpus, another corpus in BEIR's layout, and configs of the commands."""

import shutil
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dream.commands.train import train
from dream.evaluation import labelled_queries
from dream.utils.runtime import CONFIG_DIR


@pytest.fixture(autouse=True)
def no_warning_was_logged():
    """Each test can see warnings that are logged once in a process."""
    labelled_queries._warn_once.cache_clear()


def composed(script: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(script, list(overrides))


@pytest.fixture(scope="session")
def training(corpus_folder, llama_folder, tmp_path_factory):
    """Makes configs of short trainings on the tiny corpus: 30 labelled queries of split dev, 50 of split test."""
    labels = tmp_path_factory.mktemp("labels")
    lines = (corpus_folder / "dev.tsv").read_text().splitlines(keepends=True)
    (labels / "dev.tsv").write_text("".join(lines[:31]))
    (labels / "test.tsv").write_text("".join([lines[0], *lines[31:]]))

    def make(root: Path, run: str, *overrides: str) -> DictConfig:
        return composed(
            "train", "corpus=jsonl", f"corpus.path={corpus_folder / 'corpus.jsonl'}",
            f"corpus.queries={corpus_folder / 'queries.jsonl'}", "corpus.text_fields=[text]",
            f"corpus.qrels={{dev: {labels / 'dev.tsv'}, test: {labels / 'test.tsv'}}}", "objective=info_nce",
            "scorer=hf", f"scorer.name={llama_folder}", "encoder.random_width=32",
            f"paths.data={root / 'data'}", f"paths.logs={root / 'logs'}", f"paths.run={root / 'logs' / run}",
            "data.batch_size=16", "data.passage_tokens=24", "data.context_tokens=12", "data.min_context_tokens=6",
            "data.target_tokens=8", "trainer.max_steps=8", "trainer.accelerator=cpu",
            "+trainer.enable_progress_bar=false", "callbacks.progress=null", "callbacks.index_refresh.every_n_steps=0",
            "callbacks.evaluation.every_n_steps=0", "callbacks.best_checkpoint=null",
            "callbacks.candidate_panels=null", *overrides,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def world(training, tmp_path_factory) -> Path:
    """Two finished runs that only differ in the seed: logs/sweep/0 and logs/sweep/1."""
    root = tmp_path_factory.mktemp("world")
    for seed in (0, 1):
        train(training(root, f"sweep/{seed}", f"seed={seed}"))
    return root


@pytest.fixture
def config(world, tmp_path):
    def make(*overrides: str) -> DictConfig:
        return composed("evaluate", f"paths.data={world / 'data'}", f"paths.logs={world / 'logs'}",
                        f"paths.run={tmp_path / 'evaluation'}", f"run={world / 'logs/sweep/0'}", "device=cpu",
                        "statistics.resamples=200", *overrides)  # fmt: skip

    return make


@pytest.fixture
def beir(corpus_folder, tmp_path) -> Path:
    """Another corpus in BEIR's layout: the second half of the tiny one, its labels those of a split `test`."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    lines = (corpus_folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (folder / "corpus.jsonl").write_text("".join(lines[40:]))
    shutil.copy(corpus_folder / "queries.jsonl", folder)
    shutil.copy(corpus_folder / "dev.tsv", folder / "qrels" / "test.tsv")
    return folder


@pytest.fixture
def run_of_an_own_encoder(world, tmp_path, monkeypatch) -> Path:
    """A finished run whose encoder is of the user's package `my_encoders`, which is on the PYTHONPATH."""
    package = tmp_path / "packages" / "my_encoders"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from dream.encoders.static import StaticEncoder\n\n\nclass MyEncoder(StaticEncoder):\n    opened = []\n\n"
        "    @classmethod\n    def open(cls, folder):\n        cls.opened.append(folder)\n"
        "        return super().open(folder)\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "my_encoders", raising=False)
    run = tmp_path / "own_run"
    shutil.copytree(world / "logs/sweep/0", run)
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.encoder._target_ = "my_encoders.MyEncoder"
    OmegaConf.save(cfg, run / "config.yaml")
    return run


@pytest.fixture
def moved(world, tmp_path) -> Path:
    """A copy of `world` elsewhere. Its runs' configs name a folder of stores that does not exist."""
    root = tmp_path / "moved"
    shutil.copytree(world, root)
    for config in root.glob("logs/sweep/*/config.yaml"):
        config.write_text(config.read_text().split("\n", 1)[1].replace(str(world), str(tmp_path / "gone")))
    return root
