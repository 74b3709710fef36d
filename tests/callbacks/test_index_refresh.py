"""When the index is refreshed, which snapshots stay, and what a resumed run searches.

pytest tests/callbacks/test_index_refresh.py
"""

import csv
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from dream.callbacks.index_refresh import IndexRefresh
from dream.indexes.snapshot import IndexHandle
from dream.utils.errors import ConfigError


def refresh_every(steps: int) -> IndexRefresh:
    return IndexRefresh(every_n_steps=steps, batch_passages=50)


def checkpoints(run: Path, every: int, save_top_k: int = -1) -> ModelCheckpoint:
    return ModelCheckpoint(
        run / "checkpoints", "{step}", every_n_train_steps=every, save_top_k=save_top_k, monitor=None
    )


def on_disk(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("snapshot-")) for path in (run / "index").iterdir())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedule(train, tmp_path, accumulate) -> None:
    module, _ = train(tmp_path, [refresh_every(3)], 7, accumulate_grad_batches=accumulate)
    assert module.index.refreshed == [0, 3, 6, 7]
    assert on_disk(tmp_path) == [7]


def test_a_fresh_index_is_not_refreshed_at_the_end(train, tmp_path) -> None:
    module, _ = train(tmp_path, [refresh_every(3)], 6)
    assert module.index.refreshed == [0, 3, 6]


def test_only_at_the_start_and_the_end(train, tmp_path) -> None:
    module, _ = train(tmp_path, [refresh_every(0)], 4)
    assert module.index.refreshed == [0, 4]


def test_the_index_holds_the_encoder_of_its_step(train, tmp_path) -> None:
    module, _ = train(tmp_path, [refresh_every(2)], 4)
    with torch.no_grad():
        expected = module.encoder(module.store.passage_batch(range(20), 24), "passage")
    stored = torch.from_numpy(module.index.current.rows(range(20)))
    torch.testing.assert_close(stored, expected, atol=1e-3, rtol=0)


def test_keeps_what_checkpoints_name(train, tmp_path, monkeypatch) -> None:
    """Checkpoints at 2 (searching snapshot 0), 4 (snapshot 3), 6 (snapshot 6); the last refresh is at 8."""
    train(tmp_path, [refresh_every(3), checkpoints(tmp_path, 2)], 7)
    assert on_disk(tmp_path) == [0, 3, 6, 7]
    other = tmp_path / "other"
    train(other, [refresh_every(3), checkpoints(other, 2, save_top_k=1)], 7)
    assert on_disk(other) == [6, 7]  # of the checkpoints, only that of step 6 is left
    third = tmp_path / "third"
    monkeypatch.setattr("dream.callbacks.index_refresh.KEEP", 3)
    train(third, [refresh_every(2)], 7)
    assert on_disk(third) == [4, 6, 7]


@pytest.mark.parametrize("finished", [True, False])
def test_training_further_keeps_the_snapshot_of_the_saved_encoder(train, tmp_path, finished) -> None:
    """Until its new end, the run is searched with the encoder that it saved at its first end."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    module, _ = train(run, [refresh_every(2), checkpoints(outside, every=4)], 4)
    if finished:
        (run / "encoder").mkdir()
        content = {"encoder_fingerprint": module.encoder.fingerprint()}
        (run / "encoder" / "belongs_to.json").write_text(json.dumps(content))
    (checkpoint,) = (outside / "checkpoints").iterdir()
    train(run, [refresh_every(2)], 8, ckpt=checkpoint)
    assert on_disk(run) == ([4, 8] if finished else [8])


def test_an_unreadable_checkpoint_deletes_nothing(train, tmp_path) -> None:
    (tmp_path / "half.ckpt").write_bytes(b"PK")
    train(tmp_path, [refresh_every(2)], 5)
    assert on_disk(tmp_path) == [0, 2, 4, 5]


def test_state_is_plain(train, tmp_path) -> None:
    module, _ = train(tmp_path, [refresh_every(3), checkpoints(tmp_path, 4)], 4)
    content = torch.load(tmp_path / "checkpoints" / "step=4.ckpt", weights_only=True)
    state = content["callbacks"]["IndexRefresh"]
    assert state["snapshot"] == "index/snapshot-00000003"
    assert state["absolute"] == str(tmp_path / "index" / "snapshot-00000003")
    assert state["step"] == 3
    assert module.index.current.step == 4


def resumed(train, run: Path, ckpt: Path, max_steps: int = 7):
    return train(run, [refresh_every(3), checkpoints(run, 2)], max_steps, ckpt=str(ckpt))


def test_resuming_opens_the_snapshot(train, tmp_path, capsys) -> None:
    """Stopped at 5, resumed from the checkpoint of 4: snapshot 3 is opened, not embedded, and 6 and 7 follow."""
    run = tmp_path
    train(run, [refresh_every(3), checkpoints(run, 2)], 5)
    module, _ = resumed(train, run, run / "checkpoints" / "step=4.ckpt")
    assert module.index.opened == [str(run / "index" / "snapshot-00000003")]
    assert module.index.refreshed == [6, 7]
    assert "embedding the corpus again" not in capsys.readouterr().out


def test_resuming_in_another_folder(train, tmp_path) -> None:
    run = tmp_path / "run"
    train(run, [refresh_every(3), checkpoints(run, 2)], 5)
    module, _ = resumed(train, tmp_path / "new", run / "checkpoints" / "step=4.ckpt")
    assert module.index.opened == [str(run / "index" / "snapshot-00000003")]
    assert on_disk(run) == [0, 3, 5]
    moved = tmp_path / "moved"
    run.rename(moved)
    module, _ = resumed(train, tmp_path / "newer", moved / "checkpoints" / "step=4.ckpt")
    assert module.index.opened == [str(moved / "index" / "snapshot-00000003")]


@pytest.mark.parametrize("damaged", ["shard-00000.npy", "manifest.json", "checksums.json", "encoder.safetensors"])
def test_resuming_with_a_damaged_snapshot(train, tmp_path, capsys, damaged):
    """It is embedded again by its own weights, not by the checkpoint's, so the run continues as if undamaged."""
    train(tmp_path, [refresh_every(3), checkpoints(tmp_path, 2)], 5)
    snapshot = tmp_path / "index" / "snapshot-00000003"
    shard = (snapshot / "shard-00000.npy").read_bytes()
    content = bytearray((snapshot / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (snapshot / damaged).write_bytes(content)
    capsys.readouterr()
    module, _ = resumed(train, tmp_path, tmp_path / "checkpoints" / "step=4.ckpt")
    assert (snapshot / "shard-00000.npy").read_bytes() == shard
    assert module.index.refreshed == ([] if damaged == "encoder.safetensors" else [3]) + [6, 7]
    printed = capsys.readouterr().out
    assert f"{snapshot / damaged}: damaged" in printed
    assert "Candidates can differ" not in printed


def test_resuming_without_the_snapshot(train, tmp_path, capsys):
    train(tmp_path, [refresh_every(3), checkpoints(tmp_path, 2)], 5)
    snapshot = tmp_path / "index" / "snapshot-00000003"
    shutil.rmtree(snapshot)
    capsys.readouterr()
    module, _ = resumed(train, tmp_path, tmp_path / "checkpoints" / "step=4.ckpt")
    assert module.index.refreshed == [4, 6, 7]
    lines = [line for line in capsys.readouterr().out.splitlines() if "Candidates can differ" in line]
    assert len(lines) == 1
    assert str(snapshot) in lines[0]


def test_a_damaged_snapshot_of_another_run_is_not_changed(train, tmp_path):
    run = tmp_path / "run"
    train(run, [refresh_every(3), checkpoints(run, 2)], 5)
    shard = run / "index" / "snapshot-00000003" / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    module, _ = resumed(train, tmp_path / "new", run / "checkpoints" / "step=4.ckpt")
    assert module.index.refreshed == [3, 6, 7]
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_metrics(train, tmp_path) -> None:
    """By hand: after steps 1 to 7 with refreshes at 3 and 6, the index is 1, 2, 0, 1, 2, 0, 1 steps old: n/3."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    _, trainer = train(tmp_path, [refresh_every(3)], 7, logger=logger)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    ages = [float(row["index/age_steps"]) for row in rows if row.get("index/age_steps")]
    assert ages == [1, 2, 0, 1, 2, 0, 1]
    fractions = [float(row["index/age_fraction"]) for row in rows if row.get("index/age_fraction")]
    assert fractions == pytest.approx([1 / 3, 2 / 3, 0, 1 / 3, 2 / 3, 0, 1 / 3])
    overlaps = [float(row["index/overlap_at_10"]) for row in rows if row.get("index/overlap_at_10")]
    assert len(overlaps) == 3
    assert all(0 < overlap <= 1 for overlap in overlaps)
    assert len([row for row in rows if row.get("index/seconds")]) == 4
    assert trainer.callback_metrics["index/overlap_at_10"].item() == pytest.approx(overlaps[-1])


@pytest.mark.parametrize(("name", "value"), [("every_n_steps", -1), ("batch_passages", 0)])
def test_bad_values_are_named(name, value) -> None:
    knobs = {"every_n_steps": 1, "batch_passages": 1} | {name: value}
    with pytest.raises(ConfigError, match=rf"^callbacks\.index_refresh\.{name}={value}: "):
        IndexRefresh(**knobs)


def test_an_index_of_the_same_weights_is_not_refreshed_at_the_start(train, tmp_path) -> None:
    """FinalReport refreshes before training. If the weights change after that, the index is refreshed again."""

    class Before(Callback):
        def __init__(self, changes: bool) -> None:
            self.changes = changes

        def setup(self, trainer, pl_module, stage) -> None:
            refresh.refresh(trainer, pl_module)
            if self.changes:
                with torch.no_grad():
                    pl_module.encoder.weight_V += 1

    refresh = refresh_every(3)
    module, _ = train(tmp_path / "same", [refresh, Before(changes=False)], 4)
    assert module.index.refreshed == [0, 3, 4]
    refresh = refresh_every(3)
    module, _ = train(tmp_path / "changed", [refresh, Before(changes=True)], 4)
    assert module.index.refreshed == [0, 0, 3, 4]


def test_a_run_resumed_after_its_last_step_moves_the_encoder_back_first(monkeypatch) -> None:
    """Lightning has moved it to the CPU, and passages are embedded on the trainer's device."""
    order = []
    refresh = refresh_every(3)
    refresh._resumed = {"step": 3}
    monkeypatch.setattr(refresh, "_reopen", lambda *_: order.append("reopen"))
    monkeypatch.setattr(refresh, "_refresh_unless_fresh", lambda *_: order.append("refresh"))
    encoder = SimpleNamespace(to=order.append)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device="cuda:0"))
    refresh.on_fit_end(trainer, SimpleNamespace(encoder=encoder))
    assert order == ["cuda:0", "reopen", "refresh"]


def test_passages_are_embedded_on_the_trainers_device(monkeypatch, store, tmp_path) -> None:
    """Before training, Lightning has not moved the module yet, so the module's own device may be another one."""
    devices = []

    def refresh(self, encoder, store, step, device, batch_passages):
        devices.append(device)
        raise InterruptedError

    monkeypatch.setattr(IndexHandle, "refresh", refresh)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device="cuda:0"),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        is_global_zero=True,
        global_step=0,
    )
    module = SimpleNamespace(index=IndexHandle(None, tmp_path), encoder=None, store=store, device="cpu")
    with pytest.raises(InterruptedError):
        refresh_every(3).refresh(trainer, module)
    assert devices == ["cuda:0"]
