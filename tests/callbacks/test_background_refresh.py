"""Another process embeds the index while training continues. pytest tests/callbacks/test_background_refresh.py"""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from dream.callbacks.evaluation import RetrievalEvaluation
from dream.callbacks.index_refresh import IndexRefresh
from dream.indexes import background
from dream.indexes.background import pending_folder
from dream.indexes.exact import ExactIndex
from dream.indexes.snapshot import IndexHandle
from dream.module import RetrieverModule
from dream.utils.errors import ConfigError, DreamError

RUN = ["callbacks.index_refresh.mode=background", "callbacks.index_refresh.every_n_steps=3",
       "callbacks.evaluation.every_n_steps=0", "callbacks.last_checkpoint.every_n_train_steps=1",
       "candidates.schedule.bm25.start=0.5", "candidates.schedule.index.start=0.5"]  # fmt: skip


def refresh_every(steps: int, mode: str = "background") -> IndexRefresh:
    return IndexRefresh(every_n_steps=steps, batch_passages=50, mode=mode)


def checkpoints(run: Path) -> ModelCheckpoint:
    return ModelCheckpoint(run / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1, monitor=None)


def snapshot(run: Path, step: int) -> Path:
    return run / "index" / f"snapshot-{step:08d}"


def children() -> list[str]:
    return [" ".join(child.cmdline()) for child in psutil.Process().children() if "background" in str(child.cmdline())]


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_snapshot_is_searched_from_the_next_refresh_on(train, tmp_path, accumulate):
    module, _ = train(tmp_path, [refresh_every(2)], 7, accumulate_grad_batches=accumulate)
    assert module.index.refreshed == [0, 7]
    assert module.index.opened == [str(snapshot(tmp_path, 2)), str(snapshot(tmp_path, 4))]
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["snapshot-00000007"]
    assert children() == []


def test_its_files_are_those_of_a_blocking_refresh(train, tmp_path):
    for mode in ("background", "blocking"):
        train(tmp_path / mode, [refresh_every(2, mode), checkpoints(tmp_path / mode)], 6)
    for step in (2, 4, 6):
        files = {file.name: file.read_bytes() for file in snapshot(tmp_path / "blocking", step).iterdir()}
        assert {file.name: file.read_bytes() for file in snapshot(tmp_path / "background", step).iterdir()} == files


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_checkpoint_names_the_pending_snapshot(train, tmp_path, capsys, is_lost):
    """Resumed at step 3: snapshot 2, complete or not, is opened at step 4. If it is lost, one is made of step 3."""
    train(tmp_path, [refresh_every(2), checkpoints(tmp_path)], 3)
    checkpoint = tmp_path / "checkpoints" / "step=3.ckpt"
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["IndexRefresh"]
    assert (state["step"], state["pending"]["step"]) == (0, 2)
    kept = [folder for folder in (pending_folder(snapshot(tmp_path, 2)), snapshot(tmp_path, 2)) if folder.exists()]
    assert kept
    for folder in kept * is_lost:
        shutil.rmtree(folder)
    capsys.readouterr()
    module, _ = train(tmp_path, [refresh_every(2), checkpoints(tmp_path)], 5, ckpt=str(checkpoint))
    assert module.index.opened == [str(snapshot(tmp_path, step)) for step in (0, 3 if is_lost else 2)]
    assert ("Candidates can differ" in capsys.readouterr().out) == is_lost


def test_a_process_that_fails_is_named(train, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "ENCODER", "other")  # only in this process: the other one finds no encoder
    with pytest.raises(DreamError, match=r"mode=background: the process that embeds snapshot-00000002 has"):
        train(tmp_path, [refresh_every(2)], 5)
    assert children() == []


def test_impossible_combinations_are_refused():
    with pytest.raises(ConfigError, match="callbacks.index_refresh.mode=later: choose blocking or background"):
        refresh_every(2, "later")
    with pytest.raises(ConfigError, match=r"evaluation.every_n_steps=4: with .*mode=background.* set it to 0"):
        RetrievalEvaluation("dev", 4).check_interval([refresh_every(2)])
    RetrievalEvaluation("dev", 0).check_interval([refresh_every(2)])


def embedding() -> list[psutil.Process]:
    """The processes on this machine that embed a snapshot."""
    return [
        each for each in psutil.process_iter(["cmdline"]) if "dream.indexes.background" in str(each.info["cmdline"])
    ]


def die_at(step: int, cfg) -> None:
    """Train, and be killed after this step."""
    from dream.commands.train import train

    def end(*_):
        if RetrieverModule.seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
        RetrieverModule.seen += 1

    RetrieverModule.seen, RetrieverModule.on_train_batch_end = 0, end
    train(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_killed_run_is_resumed_bitwise(tiny_config, labels, tmp_path, step):
    """SIGKILL while the snapshot of step 3 is embedded; candidates of later steps come from it."""
    from dream.commands.train import train

    train(tiny_config("whole", *RUN, *labels))
    process = multiprocessing.get_context("spawn").Process(
        target=die_at, args=(step, tiny_config("part", *RUN, *labels))
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    end = time.monotonic() + 20
    while (orphans := embedding()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not orphans
    checkpoint = tmp_path / "part" / "checkpoints" / "last.ckpt"
    train(tiny_config("part", *RUN, *labels, f"ckpt={checkpoint}"))
    whole, part = (load_file(tmp_path / run / "encoder" / "model.safetensors") for run in ("whole", "part_2"))
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


def test_prune_keeps_what_is_pending(tmp_path):
    handle = IndexHandle(ExactIndex(1000, True), tmp_path)
    for step in (1, 2):
        (tmp_path / f"pending-snapshot-{step:08d}").mkdir()
    handle.prune({tmp_path / "snapshot-00000002"})
    assert [path.name for path in tmp_path.iterdir()] == ["pending-snapshot-00000002"]
