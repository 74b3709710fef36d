"""Paths are absolute, `~` is the home folder, and runs are found after a move. Run: pytest tests/runs/test_paths.py"""

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import dream
from dream.commands.app import parseable
from dream.commands.train import train
from dream.runs.load import open_config
from dream.runs.paths import make_absolute, relocate


def test_every_path_of_a_config_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "bert").mkdir()
    cfg = OmegaConf.create({
        "paths": {"data": "data", "logs": "~/logs"},
        "corpus": {"path": "my.jsonl", "queries": "q.jsonl", "qrels": {"dev": "dev.tsv"}},
        "encoder": {"name": "bert"}, "scorer": {"name": "Qwen/Qwen2.5-0.5B"}, "ckpt": "last.ckpt", "run": ["a", "b"],
    })  # fmt: skip
    make_absolute(cfg)
    here = str(tmp_path)
    assert OmegaConf.to_container(cfg, resolve=True) == {
        "paths": {"data": f"{here}/data", "logs": f"{here}/home/logs"},
        "corpus": {"path": f"{here}/my.jsonl", "queries": f"{here}/q.jsonl", "qrels": {"dev": f"{here}/dev.tsv"}},
        "encoder": {"name": f"{here}/bert"}, "scorer": {"name": "Qwen/Qwen2.5-0.5B"}, "ckpt": f"{here}/last.ckpt",
        "run": [f"{here}/a", f"{here}/b"],
    }  # fmt: skip


@pytest.mark.parametrize("ckpt", ["last", "auto", None])
def test_words_for_a_checkpoint_are_no_paths(ckpt):
    cfg = OmegaConf.create({"ckpt": ckpt})
    make_absolute(cfg)
    assert cfg.ckpt == ckpt


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("ckpt=epoch=3.ckpt", ["ckpt='epoch=3.ckpt'"]),
        ("corpus.path=my (1).jsonl", ["corpus.path='my (1).jsonl'"]),
        ("corpus.path=~/my.jsonl", ["corpus.path={home}/my.jsonl"]),
        ('corpus.path="~/my.jsonl"', ['corpus.path="{home}/my.jsonl"']),
        ("corpus.qrels={dev:~/dev.tsv}", ["corpus.qrels={{dev:{home}/dev.tsv}}"]),
        ("corpus.path=a~/b", ["corpus.path='a~/b'"]),
        ("corpus.path=it's", [r"corpus.path='it\'s'"]),
        ("logger=null", ["~logger"]),
        ("experiment=null", []),
        ("objective.null_similarity=null", ["objective.null_similarity=null"]),
        ("seed=0,1,2", ["seed=0,1,2"]),
        ("~logger", ["~logger"]),
        ("-m", ["-m"]),
    ],
)
def test_arguments_are_quoted_for_hydra_where_it_could_not_parse_them(argument, expected):
    assert parseable(argument, "train") == [text.format(home=Path.home()) for text in expected]


def test_data_and_logs_moved_together_are_searched_where_they_are(config, tmp_path):
    train(config("experiment/run"))
    hits = dream.load(tmp_path / "logs" / "experiment" / "run").search("some words", k=3)
    (tmp_path / "new").mkdir()
    for folder in ("data", "logs"):
        shutil.move(tmp_path / folder, tmp_path / "new" / folder)
    moved = tmp_path / "new" / "logs" / "experiment" / "run"
    assert dream.load(moved).search("some words", k=3) == hits
    assert dream.load(moved).search("some words", k=3, mode="hybrid")
    assert not (tmp_path / "data").exists(), "nothing is rebuilt at the old place"
    cfg = open_config(moved)
    assert cfg.data.stores_dir == str(tmp_path / "new" / "data" / "stores")


def test_a_run_alone_is_searched_with_the_data_folder_that_is_named(config, tmp_path):
    train(config("experiment/run"))
    hits = dream.load(tmp_path / "logs" / "experiment" / "run").search("some words", k=3)
    shutil.move(tmp_path / "logs" / "experiment" / "run", tmp_path / "carried")
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    with pytest.raises(dream.DreamError, match="paths.data=FOLDER"):
        dream.load(tmp_path / "carried")
    assert dream.load(tmp_path / "carried", data=tmp_path / "elsewhere").search("some words", k=3) == hits


def test_paths_of_a_run_whose_data_is_still_there_stay(tmp_path):
    (tmp_path / "data").mkdir()
    cfg = OmegaConf.create({"paths": {"data": str(tmp_path / "data")}})
    assert relocate(cfg, tmp_path / "logs" / "x" / "run", None) is cfg
