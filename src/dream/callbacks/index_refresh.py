"""Keeps the index fresh: every n steps, the current encoder embeds the whole corpus again."""

import json
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from dream.encoders.sharded import whole_encoder
from dream.indexes.background import BackgroundSnapshots
from dream.indexes.snapshot import IndexHandle
from dream.runs.layout import BELONGS_TO, ENCODER
from dream.utils import ranks
from dream.utils.errors import DataError, DreamError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)

MODES = ("blocking", "background")
KEEP = 1  # number of newest snapshots to keep, in addition to those that `_to_keep` lists


class IndexRefresh(L.Callback):
    """Refreshes `pl_module.index` at the start, every `every_n_steps` steps, and at the end.

    A checkpoint names the snapshot that was searched when the checkpoint was written. Resuming opens that snapshot, so
    the run gets the same candidates as without the interruption. A snapshot is kept as long as a checkpoint in the
    run's folder names it, or the run's saved encoder made it.

    Logs `index/overlap_at_10` and `index/seconds` at each refresh. Logs `index/age_steps` and `index/age_fraction` (the
    age divided by the refresh interval) at each step.

    Order: before all callbacks that use the index. Lightning calls checkpoints last, so a checkpoint always names the
    refreshed snapshot.

    With mode `background`, the refresh of step s is embedded by another process, on the CPU and in float32, while
    training continues. It is searched from the next refresh on, at step s + `every_n_steps`, whenever it is complete.
    So the candidates of a step do not depend on the speed of that process. A checkpoint also names this snapshot.

    Args:
        every_n_steps: optimizer steps between two refreshes; 0: only at the start and at the end.
        batch_passages: passages embedded at a time.
        mode: `blocking` or `background`. The refreshes at the start and at the end are always blocking.

    Raises:
        ConfigError: an argument is out of range.
        DreamError: the module has no index.
    """

    def __init__(self, every_n_steps: int, batch_passages: int, mode: str = "blocking") -> None:
        remedy = "at least 1, or 0 for only at the start and at the end"
        require(every_n_steps >= 0, "callbacks.index_refresh.every_n_steps", every_n_steps, remedy)
        require(batch_passages >= 1, "callbacks.index_refresh.batch_passages", batch_passages, "at least 1")
        require(mode in MODES, "callbacks.index_refresh.mode", mode, f"choose {' or '.join(MODES)}")
        self.every_n_steps = every_n_steps
        self.batch_passages, self.mode = batch_passages, mode
        self._background: BackgroundSnapshots | None = None
        self._state: dict[str, Any] = {}
        self._resumed: dict[str, Any] = {}
        # (checkpoint file, its mtime) → the snapshots that it names; None: it cannot be read
        self._by_checkpoint: dict[tuple[Path, int], set[Path] | None] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reopened = self._resumed and self._reopen(trainer, pl_module)
        if not reopened and not self._is_current(trainer, pl_module):
            self.refresh(trainer, pl_module)
        if self.mode == "background":
            self._start_background(trainer, pl_module)
        self._resumed = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0:
            if self.mode == "background":
                self._exchange(trainer, pl_module)
            else:
                self._refresh_unless_fresh(trainer, pl_module)
        age = float(step - self._state["step"])
        interval = self.every_n_steps or trainer.max_steps
        pl_module.log_dict({"index/age_steps": age, "index/age_fraction": age / interval})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()
        self._refresh_unless_fresh(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """If a run is resumed after its last step, Lightning calls no training hooks, only this one."""
        if self._resumed:
            pl_module.encoder.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
            self._reopen(trainer, pl_module)
            self._resumed = {}
            self._refresh_unless_fresh(trainer, pl_module)

    def _is_current(self, trainer: L.Trainer, pl_module: Any) -> bool:
        """Whether the index already contains this step's weights: `FinalReport` refreshes it before training."""
        current = _handle(pl_module).current
        if current is None or current.step != trainer.global_step:
            return False
        with whole_encoder(pl_module) as encoder:
            return current.encoder_fingerprint == encoder.fingerprint()

    def _refresh_unless_fresh(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """With gradient accumulation, several batches have the same step. Only the first of them refreshes.

        A snapshot in another run's folder, which the first step with `ckpt=FILE` may search, does not count.
        """
        handle = _handle(pl_module)
        current = handle.current
        is_own = current is not None and current.path.parent.resolve() == handle.folder.resolve()
        if current is None or not is_own or current.step != trainer.global_step:
            self.refresh(trainer, pl_module)

    def refresh(self, trainer: L.Trainer, pl_module: L.LightningModule, prune: bool = True) -> None:
        """Embed the corpus with the current encoder into a new snapshot. All ranks call this, and then search it.

        `prune`: delete snapshots that are no longer needed.
        """
        module: Any = pl_module
        handle = _handle(pl_module)
        metrics: dict[str, float] = {}
        device = trainer.strategy.root_device  # before training, Lightning has not moved the module yet
        timer = getattr(module, "timer", None)
        how = trainer.precision_plugin.forward_context
        with timer("refresh") if timer else nullcontext(), how(), whole_encoder(module) as encoder:
            report = handle.refresh(encoder, module.store, trainer.global_step, device, self.batch_passages)
        metrics["index/seconds"] = report.seconds
        if report.overlap_at_10 is not None:
            metrics["index/overlap_at_10"] = report.overlap_at_10
        self._remember(handle)
        if prune:
            ranks.on_rank_zero(lambda: handle.prune(self._to_keep(handle)))
        _log(trainer, metrics)

    def _exchange(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Search the snapshot of the last refresh, and start the next one."""
        background, handle, step = self._background, _handle(pl_module), trainer.global_step
        assert background is not None
        assert handle.current is not None
        if step == handle.current.step or (background.path is not None and step == background.step):
            return  # with gradient accumulation, several batches have the same step
        began = time.perf_counter()
        metrics: dict[str, float] = {}
        with pl_module.timer("refresh"):
            if background.path is not None and (shared := background.open()) is not None:
                metrics["index/overlap_at_10"] = shared
            self._remember(handle)
            ranks.on_rank_zero(lambda: handle.prune(self._to_keep(handle)))
            if step != trainer.max_steps:
                background.start(step)
            self._remember(handle)
        _log(trainer, metrics | {"index/seconds": time.perf_counter() - began})

    def _start_background(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Continue with the snapshot that was pending at the checkpoint, or start the one of this step."""
        handle, step = _handle(pl_module), trainer.global_step
        background = self._background = BackgroundSnapshots(
            handle, pl_module.encoder, pl_module.store, self.batch_passages
        )
        if pending := self._resumed.get("pending"):
            paths = _places(trainer, handle, pending)
            if not background.resume(paths, pending["step"], pending["encoder_fingerprint"]):
                log.warning(f"{paths[-1]}: the checkpoint's next index snapshot is missing; embedding it with the "
                            "current weights. Candidates can differ from those of an uninterrupted run")  # fmt: skip
                background.start(step)
        elif step and self.every_n_steps and step % self.every_n_steps == 0 and step != trainer.max_steps:
            background.start(step)
        self._remember(handle)

    def _stop(self) -> None:
        if self._background is not None:
            self._background.stop()

    def _remember(self, handle: IndexHandle) -> None:
        current, background = handle.current, self._background
        assert current is not None
        self._state = _reference(handle, current.path, current.encoder_fingerprint, current.step)
        if background is not None and background.path is not None:
            self._state["pending"] = _reference(handle, background.path, background.fingerprint, background.step)

    def _reopen(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Open the snapshot that the checkpoint names: in this run, in the checkpoint's run, or at its old path."""
        module: Any = pl_module
        handle = _handle(pl_module)
        paths = _places(trainer, handle, self._resumed)
        fingerprint, step = self._resumed["encoder_fingerprint"], self._resumed["step"]
        expected = module.store, module.encoder.width, fingerprint
        for path in ranks.on_rank_zero(lambda: list(filter(Path.exists, paths))):
            if ranks.on_rank_zero(partial(_opens, handle, path, *expected)):
                if not ranks.is_first():
                    handle.open(path, *expected)
            # damaged, or made from another store: restore it, or try the next path
            else:
                with trainer.precision_plugin.forward_context(), whole_encoder(module) as encoder:
                    device, batch = trainer.strategy.root_device, self.batch_passages
                    restored = handle.restore(path, fingerprint, step, encoder, module.store, device, batch)
                if not restored:
                    continue
            self._remember(handle)
            return True
        log.warning(
            f"{self._resumed['absolute']}: the checkpoint's index snapshot is missing; embedding the corpus again. "
            "Candidates can differ from those of an uninterrupted run"
        )
        return False

    def _to_keep(self, handle: IndexHandle) -> set[Path]:
        """The newest snapshots, those that any checkpoint in the run's folder names, and that of its saved encoder."""
        newest = sorted(handle.snapshots(), key=lambda path: (path / "manifest.json").stat().st_mtime)[-KEEP:]
        run = handle.folder.parent
        named: set[Path] = set()
        for file in run.rglob("*.ckpt"):
            key = (file, file.stat().st_mtime_ns)
            if key not in self._by_checkpoint:
                self._by_checkpoint[key] = _snapshots_of(file, run, self.state_key)
            paths = self._by_checkpoint[key]
            if paths is None:
                return set(handle.snapshots())  # an unreadable checkpoint may need any snapshot, so keep all
            named |= paths
        return named | set(newest) | _of_saved_encoder(handle)


def _of_saved_encoder(handle: IndexHandle) -> set[Path]:
    """The snapshots by the encoder that the run has saved. A finished run that is trained further has the older
    encoder until its end, and is searched with it."""
    saved = _fingerprint_in(handle.folder.parent / ENCODER / BELONGS_TO)
    return {path for path in handle.snapshots() if saved and _fingerprint_in(path / "manifest.json") == saved}


def _fingerprint_in(file: Path) -> str | None:
    """The encoder's fingerprint in a JSON file. None if the file cannot be read."""
    try:
        return json.loads(file.read_text())["encoder_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _snapshots_of(checkpoint: Path, run: Path, state_key: str) -> set[Path] | None:
    """The snapshots that a checkpoint names; None if the checkpoint cannot be read. Does not read the weights."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"][state_key]
        return {run / named["snapshot"] for named in (state, state.get("pending")) if named}
    except Exception:
        return None


def _places(trainer: L.Trainer, handle: IndexHandle, named: dict[str, Any]) -> list[Path]:
    """Where a snapshot may be that a checkpoint names: in this run, in the checkpoint's run, at its old path."""
    checkpoint = Path(trainer.ckpt_path or ".").absolute()
    runs = [handle.folder.parent.absolute(), *list(checkpoint.parents)[:3]]
    return list(dict.fromkeys([*(run / named["snapshot"] for run in runs), Path(named["absolute"])]))


def _reference(handle: IndexHandle, path: Path, fingerprint: str, step: int) -> dict[str, Any]:
    """How a checkpoint names a snapshot."""
    path, run = path.absolute(), handle.folder.parent.absolute()
    relative = str(path.relative_to(run)) if path.is_relative_to(run) else str(path)
    return {"snapshot": relative, "absolute": str(path), "encoder_fingerprint": fingerprint, "step": step}


def _log(trainer: L.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})


def _opens(handle: IndexHandle, path: Path, *expected: Any) -> bool:
    """Open a snapshot. Returns whether it is undamaged and as expected."""
    try:
        handle.open(path, *expected)
    except DataError as error:
        log.info(str(error))
        return False
    return True


def _handle(pl_module: L.LightningModule) -> IndexHandle:
    handle = getattr(pl_module, "index", None)
    if not isinstance(handle, IndexHandle):
        raise DreamError(
            "callbacks.index_refresh needs a module with an index; remove it with ~callbacks.index_refresh"
        )
    return handle
