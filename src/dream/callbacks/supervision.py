"""Shows what the language model teaches and what the retriever has learnt of it, as text, in TensorBoard."""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from dream.batch import WindowBatch
from dream.errors import require
from dream.indexes.generation import Generation
from dream.store.permutation import permute
from dream.store.store import Store

SEED = 20_260_627  # of the passages in the projector: the same ones at the start and at the end


class SupervisionMonitor(L.Callback):
    """Every `every_n_steps`, a table of some windows' candidates with both probabilities, the posterior's best first.

    Reads `candidate_ids_SK`, `posterior_SK` and `retriever_SK` from what `training_step` returns, and is silent for
    objectives that have no posterior. At the start and at the end, `projected` seeded passages of the current index
    generation go to the embedding projector. Does nothing without a TensorBoardLogger.
    """

    def __init__(self, every_n_steps: int, windows: int, candidates: int, characters: int, projected: int) -> None:
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("windows", windows),
            ("candidates", candidates),
            ("characters", characters),
        ):
            require(value >= 1, f"callbacks.supervision.{name}", value, "at least 1")
        require(projected >= 0, "callbacks.supervision.projected", projected, "0 for none, or the number of passages")
        self.every_n_steps = every_n_steps
        self.windows, self.candidates, self.characters, self.projected = windows, candidates, characters, projected
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
        columns = [outputs[name][: self.windows].detach().float().cpu() for name in names]
        tables = [self.table(store, *row) for row in zip(batch.window_ids_B.tolist(), *columns, strict=False)]
        board.add_text("supervision", "\n\n---\n\n".join(tables), step)

    def table(self, store: Store, window_id: int, ids_K: Tensor, posterior_K: Tensor, retriever_K: Tensor) -> str:
        """Markdown: context, target, and the likeliest candidates."""
        context, target = store.window_text(window_id)
        lines = [
            f"**context** … {_plain(context[-self.characters :])}",
            "",
            f"**target** {_plain(target[: self.characters])}",
            "",
            "| LM posterior | retriever | candidate | document |",
            "|---:|---:|---|---|",
        ]
        for k in posterior_K.argsort(descending=True, stable=True)[: self.candidates].tolist():
            text, title = self._candidate(store, int(ids_K[k]))
            lines.append(f"| {posterior_K[k]:.3f} | {retriever_K[k]:.3f} | {text} | {title} |")
        return "\n".join(lines)

    def _candidate(self, store: Store, passage_id: int) -> tuple[str, str]:
        """(text, title of its document)"""
        if passage_id < 0:
            return "*no passage*", ""
        return _plain(store.passage_text(passage_id)[: self.characters]), _plain(_title(store, passage_id))

    def _project(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        board, store = _board(trainer), module.store
        generation: Generation | None = module.index.current
        if board is None or generation is None or not self.projected or generation.step == self._projected:
            return
        self._projected = generation.step
        passage_ids = permute(SEED, np.arange(min(self.projected, generation.count)), generation.count)
        rows = [
            [str(passage_id), _title(store, passage_id), _one_line(store.passage_text(passage_id)[: self.characters])]
            for passage_id in passage_ids.tolist()
        ]
        board.add_embedding(
            torch.from_numpy(generation.rows(passage_ids)),
            metadata=rows,
            metadata_header=["passage", "document", "text"],
            tag="passages",
            global_step=generation.step,
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
