"""Console scripts: help, mistakes, from any folder. Run: pytest tests/commands/test_app.py"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tests.faults.world import World

from dream.commands.app import parseable
from dream.commands.search import is_option

BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def in_fork(script: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """(exit code, output) of a command that is forked from a process with all imports done: ten times as fast."""
    world = World(folder / "world")
    world.root.mkdir(exist_ok=True)
    options = [f"paths.data={folder / 'data'}", f"paths.logs={folder / 'logs'}", *arguments]
    process = world.start(*options, script=script, plain=True, folder=folder)
    process.join(120)
    return process.exitcode, world.output()


MODULES = {"heads": "rank_heads"}  # the others are called like their command
COMMANDS = ["evaluate", "export", "heads", "inspect", "pretrain", "search", "serve", "train", "tune"]


@pytest.mark.parametrize("script", COMMANDS)
def test_help_answers_from_any_folder_as_script_and_module(script, tmp_path):
    for command in (
        [str(BIN / f"dream-{script}")],
        [sys.executable, "-m", f"dream.commands.{MODULES.get(script, script)}"],
    ):
        done = run(*command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"dream-{script}" in done.stdout
        assert "All keys: --cfg job" in done.stdout
        assert len(done.stdout.splitlines()) <= 60, "two screens"
        assert max(map(len, done.stdout.splitlines())) <= 120
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["objective.temprature=0.1"], "objective.temprature: no such key; did you mean objective.temperature?"),
        (["encodr=static"], "encodr: no such key; did you mean encoder?"),
        (["encoder=transformer"], "encoder=transformer: no such option; choose from hf, static"),
        (["objective.temperature=-1"], "objective.temperature=-1: must be above 0"),
        (["objective.temperature=abc"], "objective.temperature=abc"),
        (["corpus=jsonl", "corpus.path=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["corpus=jsonl"], "corpus.path"),
        (["corpus=jsonl", "corpus.path=empty.jsonl"], "is empty"),
        (["corpus=jsonl", "corpus.path=one.jsonl"], "only one document"),
        (["corpus=jsonl", "corpus.path=few.jsonl", "candidates.k=500"], "candidates.k=500"),
        (["corpus=jsonl", "corpus.path=broken.jsonl"], "broken.jsonl:2: not valid JSON"),
        (["ckpt=nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["ckpt=epoch=3.ckpt"], "epoch=3.ckpt: no such checkpoint"),
        (["corpus=jsonl", "corpus.path=my (1).jsonl"], "my (1).jsonl: no such file"),
        (["+trainer.limit_train_batches=2"], "trainer.limit_train_batches=2: it would repeat the same windows"),
        (["+trainer.val_check_interval=5"], "trainer.val_check_interval=5: dev queries are ranked every"),
        (["+trainer.max_epochs=3"], "trainer.max_epochs=3: runs are counted in steps"),
        (["trainer.max_epochs=3"], "trainer.max_epochs: runs are counted in steps"),
        (["+trainer.overfit_batches=3"], "trainer.overfit_batches=3: to train on a few windows again and again use"),
        (["trainer.fast_dev_run=true"], "trainer.fast_dev_run: to try every part in seconds use debug=smoke"),
        (["trainer.max_time=00:00:01:00"], "add it with +trainer.max_time=VALUE"),
        (["trainer.detreministic=true"], "trainer.detreministic: no such key"),
        (
            ["+objective.heads=3"],
            "objective.heads: this choice of objective has no such key; remove it with ~objective",
        ),
        (["seed=null"], "seed=null: must be a whole number"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna: not installed; pip install hydra-optuna-sweeper"),
    ],
)
def test_a_mistake_ends_in_one_clear_line_and_leaves_nothing(arguments, expected, tmp_path, llama_folder):
    sentence = "the quick brown fox jumps over the lazy dog and then it sleeps for a very long time in the sun "
    line = '{{"_id": "{}", "text": "{}"}}\n'
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "one.jsonl").write_text(line.format("a", sentence * 20))
    (tmp_path / "few.jsonl").write_text("".join(line.format(n, f"{n} " + sentence * 20) for n in range(4)))
    (tmp_path / "broken.jsonl").write_text(line.format("a", sentence) + "{not json\n")
    scorer = ["scorer=hf", f"scorer.name={llama_folder}"]
    code, output = in_fork("train", tmp_path, *scorer, *arguments)
    assert code == 1
    errors = [text for text in output.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, output
    assert expected in errors[0]
    assert "Traceback" not in output
    assert "Error executing job" not in output
    assert not list((tmp_path / "logs").rglob("*"))


def test_search_without_a_run_says_what_to_do(tmp_path):
    done = run(str(BIN / "dream-search"), "how to read a file", f"run={tmp_path}", cwd=tmp_path)
    assert done.returncode == 1
    assert "no run is there; train one with" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["a b", r"\d+ (x)", "it's\\'s", "ends with \\", "ends with '", r"C:\my files\new"])
def test_a_value_in_quotes_is_read_as_it_was_written(value):
    (argument,) = parseable(f"corpus.path={value}", "train")
    assert OverridesParser.create().parse_override(argument).value() == value


@pytest.mark.parametrize(
    ("word", "expected"),
    [("k=3", True), ("mod=dense", True), ("query='a b'", True), ("paths.data=/my data", True), ("--help", True),
     ("key=lambda x: x", False), ("x=1 in python", False), ("-1 degrees", False), ("how to sort", False)],
)  # fmt: skip
def test_a_question_may_contain_an_equals_sign(word, expected):
    assert is_option(word) == expected


@pytest.mark.parametrize(
    ("script", "argument", "expected"),
    [
        ("search", "k=ten", "k=ten: a number is needed, such as 5"),
        ("serve", "gain=maybe", "gain=maybe: true or false is needed, such as false"),
        ("evaluate", "max_queries=all", "max_queries=all: null, or a whole number, at least 1"),
        ("evaluate", "passage_tokens=long", "passage_tokens=long: null, or a whole number, at least 1"),
        ("evaluate", "statistics.resamples=10k", "statistics.resamples=10k: a number is needed, such as 10000"),
        ("evaluate", "statistics.confidence=95%", "statistics.confidence=95%: a number is needed, such as 0.95"),
        ("evaluate", "lm.k=ten", "lm.k=ten: a number is needed, such as 20"),
        ("evaluate", "lm.cache_megabytes=all", "lm.cache_megabytes=all: a number is needed, such as 4096"),
        ("evaluate", "embedding.batch_passages=many", "embedding.batch_passages=many: a number is needed, such as 64"),
        ("evaluate", "hybrid_weighted.step=small", "hybrid_weighted.step=small: a number is needed, such as 0.05"),
        ("tune", "trials=many", "trials=many: a number is needed, such as 30"),
        ("train", "data.questions=many", "data.questions=many: null, or a whole number, at least 1"),
        ("train", "data.limit_windows=few", "data.limit_windows=few: null, or a whole number, at least 1"),
        ("train", "scorer.cache_megabytes=all", "scorer.cache_megabytes=all: a number is needed, such as 4096"),
        (
            "train",
            "callbacks.index_refresh.every_n_steps=often",
            "callbacks.index_refresh.every_n_steps=often: a number is needed, such as 125",
        ),
    ],
)
def test_text_for_a_number_ends_in_one_line(script, argument, expected, tmp_path):
    code, output = in_fork(script, tmp_path, argument)
    assert code == 1
    assert [text for text in output.splitlines() if text.startswith("error: ")] == [f"error: {expected}"], output
    assert "Traceback" not in output


@pytest.mark.parametrize("argument", ["near_copy=null", "statistics.confidence=0.9", "split=test", "max_queries=3"])
def test_values_of_the_right_type_are_not_refused(argument, tmp_path):
    _, output = in_fork("evaluate", tmp_path, argument)
    assert "no run is there; train one with" in output


def test_evaluate_reports_mistakes_in_one_line_and_leaves_nothing(tmp_path):
    """What is wrong with the command is reported before anything is opened."""
    for arguments, expected in (
        ([], "no run is there; train one with"),
        (["systems=[bm25,runn]"], "systems=runn: no such system; did you mean run?"),
        (["corpus=beir", "corpus.path=nowhere", "systems=[bm25]"], "nowhere: no such folder"),
    ):
        code, output = in_fork("evaluate", tmp_path, *arguments)
        assert code == 1
        errors = [text for text in output.splitlines() if text.startswith("error: ")]
        assert len(errors) == 1, output
        assert expected in errors[0]
        assert "Traceback" not in output
        assert not (tmp_path / "data").exists()
        assert not list((tmp_path / "logs").glob("evaluations/*"))
