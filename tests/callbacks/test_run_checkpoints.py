"""The newest and the best checkpoint of a run. Run: pytest tests/callbacks/test_run_checkpoints.py"""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dream.build import build_text, build_trainer
from dream.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from dream.callbacks.index_refresh import IndexRefresh
from dream.utils.checkpoints import GracefulStop

SCORES = [0.1, 0.2, 0.5, 0.3, 0.4]  # after steps 1 to 5


class Scores(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        pl_module.log("val/score", SCORES[trainer.global_step - 1])


def test_the_newest_and_the_best(train, tmp_path) -> None:
    """last.ckpt is of step 5, the last one; best.ckpt is of step 3, although step 5 is later."""
    callbacks = [LastCheckpoint(every_n_train_steps=2), BestCheckpoint("val/score", every_n_train_steps=1), Scores()]
    train(tmp_path, [IndexRefresh(0, 50), *callbacks], 5)
    files = {file.name: file for file in (tmp_path / "checkpoints").iterdir()}
    steps = {name: torch.load(file, weights_only=True)["global_step"] for name, file in files.items()}
    assert steps == {"last.ckpt": 5, "best.ckpt": 3}


def test_before_the_last_step_only_regular_steps_are_saved(train, tmp_path) -> None:
    seen = {}

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_) -> None:
            if last.exists():
                seen[trainer.global_step] = torch.load(last, weights_only=True)["global_step"]

    last = tmp_path / "checkpoints" / "last.ckpt"
    train(tmp_path, [IndexRefresh(0, 50), LastCheckpoint(every_n_train_steps=2), Watch()], 5)
    assert seen == {2: 2, 3: 2, 4: 4}


def test_a_resumed_run_saves_no_incomplete_step(train, tmp_path) -> None:
    """The first of four batches after the checkpoint of step 2 does not replace it: step 3 would lack its gradient."""
    options = {"accumulate_grad_batches": 4}
    train(tmp_path, [IndexRefresh(0, 50), LastCheckpoint(every_n_train_steps=2)], 2, **options)
    last = tmp_path / "checkpoints" / "last.ckpt"
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, *_) -> None:
            seen.append(last.stat().st_mtime_ns)

    callbacks = [IndexRefresh(0, 50), LastCheckpoint(every_n_train_steps=2), Watch()]
    train(tmp_path, callbacks, 4, ckpt=last, **options)
    assert len(seen) == 8
    assert len(set(seen)) == 1
    assert torch.load(last, weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_order_of_callbacks(tiny_config, labels, tmp_path, with_labels) -> None:
    """What uses the index comes after its refresh, and the time of checkpoints is not counted as waiting for data."""
    panels = "{_target_: dream.callbacks.candidate_panels.CandidatePanels, every_n_steps: 50}"
    cfg = tiny_config("run", f"callbacks.candidate_panels={panels}", *(labels if with_labels else []))
    trainer = build_trainer(cfg, build_text(cfg).corpus)
    names = [type(callback).__name__ for callback in trainer.callbacks]
    dependent = ["FinalReport", "CandidatePanels", "LearningMonitor", *["RetrievalEvaluation"] * with_labels]
    assert all(names.index("IndexRefresh") < names.index(name) for name in dependent)
    best = ["BestCheckpoint"] * with_labels
    assert names[-3 - with_labels :] == [*best, "LastCheckpoint", "Throughput", GracefulStop.__name__]
    assert ("RetrievalEvaluation" in names) is with_labels
