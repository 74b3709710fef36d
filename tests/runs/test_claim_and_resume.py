"""Who owns a run folder, which run resumes, and what the saved config hides.

Run: pytest tests/runs/test_claim_and_resume.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dream.build import build_trainer
from dream.runs.claim import claimed, remove_unfinished
from dream.runs.config_file import read_config, save_config
from dream.runs.resume import find_checkpoint, resumes_in_place
from dream.runs.session import start_run
from dream.utils.errors import ConfigError, DamageError, DataError

HOLD = """
import sys, time
from pathlib import Path
from dream.runs.claim import claimed
with claimed(Path(sys.argv[1]), False) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def find(tmp_path):
    """`find_checkpoint` among the runs below tmp_path."""
    return lambda ckpt, name="mine": find_checkpoint(ckpt, name, tmp_path)


def make_run(folder: Path, started: int, checkpoint: str | None = "checkpoints/last.ckpt", name: str = "mine") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: {name}\n")
    os.utime(folder / "config.yaml", (started, started))
    if checkpoint:
        (folder / checkpoint).parent.mkdir(exist_ok=True)
        torch.save({"step": started}, folder / checkpoint)
    return folder


def test_two_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    wanted = tmp_path / "2026-11-24_12-00-00"
    with subprocess.Popen([sys.executable, "-c", HOLD, wanted], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().strip() == str(wanted)
        with claimed(wanted, False) as folder:
            assert folder == wanted.with_name(f"{wanted.name}_2")
        with pytest.raises(DataError, match="still training"), claimed(wanted, True):
            pass
        other.kill()
    with claimed(wanted, True) as folder:
        assert folder == wanted
        (folder / "config.yaml").write_text("")
    with claimed(wanted, False) as folder:
        assert folder.name == f"{wanted.name}_2"


def test_last_is_the_newest_run_of_this_name_with_a_checkpoint(tmp_path, find):
    make_run(tmp_path / "mine" / "c", 100)
    wanted = make_run(tmp_path / "mine" / "sweep" / "0", 200)
    make_run(tmp_path / "mine" / "a", 300, checkpoint=None)
    make_run(tmp_path / "yours" / "a", 400, name="yours")
    assert find("last") == wanted / "checkpoints" / "last.ckpt"
    assert find(None) is None
    with pytest.raises(ConfigError, match="no run named 'nobody'"):
        find("last", "nobody")
    with pytest.raises(ConfigError, match="no such checkpoint"):
        find("nowhere.ckpt")


def test_auto_begins_anew_where_the_newest_run_has_no_checkpoint(tmp_path, find):
    older = make_run(tmp_path / "mine" / "a", 100) / "checkpoints" / "last.ckpt"
    assert find("auto") == older
    make_run(tmp_path / "mine" / "b", 200, checkpoint=None)
    assert find("auto") is None
    assert find("last") == older
    assert find("auto", "nobody") is None


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_damaged_config_does_not_hide_its_run(tmp_path, find, damage):
    run = make_run(tmp_path / "mine" / "a", 100)
    save_config(OmegaConf.create({"name": "mine", "seed": 0}), run / "config.yaml")
    text = (run / "config.yaml").read_text()
    assert read_config(run / "config.yaml")["name"] == "mine"
    (run / "config.yaml").write_text(text.replace("mine", "mime"))
    if damage == "deleted":
        (run / "config.yaml").unlink()
    with pytest.raises(DamageError, match=r"config\.yaml: "):
        read_config(run / "config.yaml")
    assert find("last") == run / "checkpoints" / "last.ckpt"
    (run / "config.yaml").write_text(text.partition("\n")[2].replace("mine", "other"))  # changed on purpose
    assert read_config(run / "config.yaml")["name"] == "other"


def test_a_damaged_checkpoint_is_refused_before_anything_is_done(tmp_path, find):
    file = make_run(tmp_path / "mine" / "a", 100) / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DamageError, match=str(file)):
        find("last")


def test_a_job_that_slurm_starts_again_goes_on(tmp_path, find, monkeypatch):
    run = make_run(tmp_path / "mine" / "a", 100, "hpc_ckpt_1.ckpt")
    (run / "slurm_job").write_text("77")
    make_run(tmp_path / "mine" / "b", 200)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert find(None) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    start = make_run(tmp_path / "mine" / "c", 300) / "checkpoints" / "last.ckpt"
    for ckpt in (None, "auto", "last", str(start)):  # `ckpt` says only where the job began
        assert find(ckpt) == run / "hpc_ckpt_1.ckpt"
        assert resumes_in_place(ckpt, find(ckpt))
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert find(str(start)) == start
    assert not resumes_in_place(str(start), start)


def test_tidying_spares_what_a_run_can_go_on_with(tmp_path):
    names = ("dead", "resumable", "mine", "finished", "further")
    dead, resumable, mine, finished, further = (tmp_path / "logs" / "x" / name for name in names)
    make_run(dead, 1, checkpoint=None)
    make_run(resumable, 2)
    make_run(mine, 3, checkpoint=None)
    for run, ended in ((finished, 2e9), (further, 1)):  # after, and before its last checkpoint
        make_run(run, 4)
        (run / "summary.json").write_text("{}")
        os.utime(run / "summary.json", (ended, ended))
    for run in (dead, resumable, mine, finished, further):
        (run / "index" / ".snapshot-00000000.partial").mkdir(parents=True)
    (tmp_path / "data" / "stores" / ".store.0123abcd.tmp").mkdir(parents=True)
    (dead / ".untrained.json.0123abcd.tmp").write_text("{")  # of a run that nobody will continue with
    foreign = [tmp_path / "data" / ".notes.tmp", resumable / ".draft.1234.tmp"]  # of other programs
    for file in foreign:
        file.mkdir()
    remove_unfinished(tmp_path / "data", tmp_path / "logs", mine)
    assert not list((dead / "index").iterdir())
    assert not list(dead.glob(".*"))
    assert not list((finished / "index").iterdir())
    assert list((resumable / "index").iterdir())
    assert list((further / "index").iterdir())
    assert list((mine / "index").iterdir())
    assert not list((tmp_path / "data" / "stores").iterdir())
    assert all(file.exists() for file in foreign)


def test_secrets_stay_out_of_the_saved_config(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("SCRATCH", "/scratch")
    cfg = OmegaConf.create(
        {
            "hub": "${oc.env:HF_TOKEN}",
            "again": "${hub}",
            "pasted": ["x-hf_0123456789"],
            "wandb": {"api_key": "abc", "entity": "us"},
            "stores": "${oc.env:SCRATCH,/tmp}/stores",
            "data": {"passage_tokens": 128, "tokens_per_forward": "auto"},
            "copy": "${data.passage_tokens}",
        }
    )
    save_config(cfg, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "hf_0123456789" not in text
    assert "abc" not in text
    saved = OmegaConf.load(tmp_path / "config.yaml")
    assert OmegaConf.to_container(saved)["stores"] == "${oc.env:SCRATCH,/tmp}/stores"
    assert saved.stores == "/scratch/stores"
    assert saved.data == {"passage_tokens": 128, "tokens_per_forward": "auto"}
    assert saved["copy"] == 128
    assert cfg.hub == "hf_0123456789"


@pytest.mark.parametrize(
    ("override", "left_out"),
    [
        ("callbacks.evaluation=null", ["best_checkpoint"]),
        ("~callbacks.evaluation", ["best_checkpoint"]),
        ("callbacks.index_refresh=null", ["evaluation", "best_checkpoint"]),
        ("~callbacks.index_refresh", ["evaluation", "best_checkpoint"]),
        ("callbacks.final_report=null", []),
    ],
)
def test_a_callback_that_needs_a_removed_one_is_left_out(config, corpus, capsys, override, left_out):
    cfg = config("run", override)
    kept = {name for name, value in cfg.callbacks.items_ex(resolve=False) if value} - set(left_out)
    with start_run(cfg) as run:
        assert {name for name, value in read_config(run.folder / "config.yaml")["callbacks"].items() if value} == kept
        assert len(build_trainer(run.cfg, corpus).callbacks) > len(kept)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Left out: ")]
    assert len(lines) == bool(left_out)
    assert all(f"callbacks.{name}, which needs callbacks." in lines[0] for name in left_out)


@pytest.mark.parametrize("interval", [0, 2])
def test_an_evaluation_with_its_own_interval_but_without_an_index_is_refused(config, corpus, interval):
    cfg = config("run", "callbacks.index_refresh=null", f"callbacks.evaluation.every_n_steps={interval}")
    with (
        start_run(cfg) as run,
        pytest.raises(ConfigError, match="callbacks.index_refresh=null: .*also set callbacks.evaluation=null"),
    ):
        build_trainer(run.cfg, corpus)
