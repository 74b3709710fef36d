"""Shows what the language model teaches and what the retriever has learnt of it, as text, in TensorBoard."""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from dream.batch import WindowBatch
from dream.indexes.snapshot import IndexSnapshot
from dream.store.permutation import permute
from dream.store.store import Store
from dream.utils.errors import require

WINDOWS = 4  # of a panel
CANDIDATES = 8  # rows of a window's table, the likeliest first
CHARACTERS = 160  # of a context, target or passage that are shown
PROJECTED = 1_000  # passages in the embedding projector
SEED = 20_260_627  # of the projected passages: the same ones at the start and at the end


class CandidatePanels(L.Callback):
    """Every `every_n_steps`, a table of some windows' candidates with both probabilities, the posterior's best first.

    Reads `candidate_ids_SK`, `posterior_SK` and `retriever_SK` from what `training_step` returns, and is silent for
    objectives that have no posterior. At the start and at the end, `projected` seeded passages of the current index
    snapshot go to the embedding projector. Does nothing without a TensorBoardLogger.
    """

    def __init__(self, every_n_steps: int) -> None:
        require(every_n_steps >= 1, "callbacks.candidate_panels.every_n_steps", every_n_steps, "at least 1")
        self.every_n_steps = every_n_steps
        self._shown_at, self._projected = 0, -1  # steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._project(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._project(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: WindowBatch, batch_idx: int
    ) -> None:
        step, board = trainer.global_step, _board(trainer)
        if (
            board is None
            or step % self.every_n_steps
            or step == self._shown_at
            or "posterior_SK" not in (outputs or {})
        ):
            return
        self._shown_at = step
        store: Any = pl_module.store
        names = ("candidate_ids_SK", "posterior_SK", "retriever_SK")
        columns = [outputs[name][:WINDOWS].detach().float().cpu() for name in names]
        tables = [self.table(store, *row) for row in zip(batch.window_ids_B.tolist(), *columns, strict=False)]
        board.add_text("supervision", "\n\n---\n\n".join(tables), step)

    def table(self, store: Store, window_id: int, ids_K: Tensor, posterior_K: Tensor, retriever_K: Tensor) -> str:
        """Markdown: context, target, and the likeliest candidates."""
        context, target = store.window_text(window_id)
        lines = [
            f"**context** … {_plain(context[-CHARACTERS:])}",
            "",
            f"**target** {_plain(target[:CHARACTERS])}",
            "",
            "| LM posterior | retriever | candidate | document |",
            "|---:|---:|---|---|",
        ]
        for k in posterior_K.argsort(descending=True, stable=True)[:CANDIDATES].tolist():
            text, title = self._candidate(store, int(ids_K[k]))
            lines.append(f"| {posterior_K[k]:.3f} | {retriever_K[k]:.3f} | {text} | {title} |")
        return "\n".join(lines)

    def _candidate(self, store: Store, passage_id: int) -> tuple[str, str]:
        """(text, title of its document)"""
        if passage_id < 0:
            return "*no passage*", ""
        return _plain(store.passage_text(passage_id)[:CHARACTERS]), _plain(_title(store, passage_id))

    def _project(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        board, store = _board(trainer), module.store
        snapshot: IndexSnapshot | None = module.index.current
        if board is None or snapshot is None or snapshot.step == self._projected:
            return
        self._projected = snapshot.step
        passage_ids = permute(SEED, np.arange(min(PROJECTED, snapshot.count)), snapshot.count)
        rows = [
            [str(passage_id), _title(store, passage_id), _one_line(store.passage_text(passage_id)[:CHARACTERS])]
            for passage_id in passage_ids.tolist()
        ]
        board.add_embedding(
            torch.from_numpy(snapshot.rows(passage_ids)),
            metadata=rows,
            metadata_header=["passage", "document", "text"],
            tag="passages",
            global_step=snapshot.step,
        )


def _board(trainer: L.Trainer) -> Any:
    """TensorBoard's writer, on the one process that logs."""
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _title(store: Store, passage_id: int) -> str:
    document = int(store.passage_documents[passage_id])
    return _one_line(store.titles[document] or store.document_names[document])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """One line of text in which Markdown and HTML see nothing but text."""
    escaped = _one_line(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for character in "|`*_[":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped
