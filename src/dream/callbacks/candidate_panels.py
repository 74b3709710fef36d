"""Shows in TensorBoard the candidates of a few windows, with the probabilities of language model and retriever.

Shape suffixes as in `batch.py`.
"""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from dream.batch import WindowBatch
from dream.indexes.snapshot import IndexSnapshot
from dream.loggers.candidate_table import CHARACTERS, Row, Window, alike, candidate_table, one_line
from dream.store.permutation import permute
from dream.store.store import Store
from dream.utils.errors import require

PROJECTED = 1_000  # passages in the embedding projector
SEED = 20_260_627  # fixed, so the projector shows the same passages at the start and at the end
SAME_WORDS = 0.5  # if two windows share at least this fraction of their words, only one of them is shown
HEADINGS = {  # one panel for each, with the tag candidates/<name>
    "disagreement": "LM and retriever disagree most",
    "confident": "The LM is most confident",
    "uncertain": "The LM is least confident",
}


class CandidatePanels(L.Callback):
    """Every `every_n_steps`, shows three windows of the step with their candidates and both probabilities.

    The three windows come from different documents and share less than half of their words: the one where language
    model and retriever disagree most, and those with the lowest and the highest posterior entropy. The texts have the
    tags `candidates/disagreement`, `candidates/confident` and `candidates/uncertain`.

    At the start and at the end, `PROJECTED` passages of the current index snapshot also appear in the embedding
    projector. Objectives without a posterior have no panels. Does nothing without a TensorBoardLogger.

    Order: after `IndexRefresh`, so that the projector shows the newest snapshot.

    Args:
        every_n_steps: optimizer steps between two panels.

    Raises:
        ConfigError: `every_n_steps` is below 1.
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
        if board is None or "posterior_SK" not in (outputs or {}):
            return
        if step % self.every_n_steps or step == self._shown_at:
            return
        self._shown_at = step
        module: Any = pl_module
        for kind, text in panels(module.store, batch.window_ids_B, outputs).items():
            board.add_text(f"candidates/{kind}", text, step)

    def _project(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        board, store = _board(trainer), module.store
        snapshot: IndexSnapshot | None = module.index.current
        if board is None or snapshot is None or snapshot.step == self._projected:
            return
        self._projected = snapshot.step
        passage_ids = permute(SEED, np.arange(min(PROJECTED, snapshot.count)), snapshot.count)
        rows = [
            [str(passage_id), _title(store, passage_id), one_line(store.passage_text(passage_id))[:CHARACTERS]]
            for passage_id in passage_ids.tolist()
        ]
        board.add_embedding(
            torch.from_numpy(snapshot.rows(passage_ids)),
            metadata=rows,
            metadata_header=["passage", "document", "text"],
            tag="passages",
            global_step=snapshot.step,
        )


def panels(store: Store, window_ids_B: Tensor, outputs: dict[str, Tensor]) -> dict[str, str]:
    """HTML of each kind of window in `HEADINGS`. A kind is missing if all remaining windows resemble a chosen one."""
    names = ("candidate_ids_SK", "posterior_SK", "retriever_SK")
    ids_SK, posterior_SK, retriever_SK = (outputs[name].detach().cpu() for name in names)
    gain_S = outputs["gain_S"].tolist()
    entropy_S = torch.special.entr(posterior_SK.float()).sum(1)
    most = np.log(posterior_SK.shape[1])
    shown = {}
    for kind, s in choose(store, window_ids_B.tolist(), posterior_SK, retriever_SK).items():
        window_id = int(window_ids_B[s])
        columns = (values[s].tolist() for values in (ids_SK, posterior_SK, retriever_SK))
        rows = [Row(p, q, *_passage(store, passage_id)) for passage_id, p, q in zip(*columns, strict=True)]
        heading = (
            f"{HEADINGS[kind]}: posterior entropy {entropy_S[s]:.2f} of at most {most:.2f} nats, "
            f"gain {gain_S[s]:.2f} nats per token"
        )
        window = Window(*store.scored_text(window_id), _name(store, store.document_of(window_id)))
        shown[kind] = candidate_table(heading, window, rows)
    return shown


def choose(store: Store, window_ids: list[int], posterior_SK: Tensor, retriever_SK: Tensor) -> dict[str, int]:
    """Row of the window of each kind. Windows that resemble a chosen window are skipped.

    Disagreement is the total variation distance: half the sum of the absolute differences of both distributions.
    """
    entropy_S = torch.special.entr(posterior_SK.float()).sum(1)
    scores = {
        "disagreement": (posterior_SK.float() - retriever_SK.float()).abs().sum(1) / 2,
        "confident": -entropy_S,
        "uncertain": entropy_S,
    }
    chosen: dict[str, int] = {}
    for kind, score_S in scores.items():
        for s in score_S.argsort(descending=True, stable=True).tolist():
            if not any(_alike(store, window_ids[s], window_ids[other]) for other in chosen.values()):
                chosen[kind] = s
                break
    return chosen


def _alike(store: Store, one: int, other: int) -> bool:
    """Whether two windows have the same document, or at least half of their content words in common."""
    if len(np.unique(store.window_rows(np.array([one, other]))["document"])) == 1:
        return True
    first_text, second_text = (" ".join(store.window_text(window)) for window in (one, other))
    return alike(first_text, second_text, SAME_WORDS)


def _board(trainer: L.Trainer) -> Any:
    """TensorBoard's writer. None without a TensorBoardLogger, and on processes that do not log."""
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _passage(store: Store, passage_id: int) -> tuple[str | None, str]:
    """(text, title of its document). The id -1 means that there is no passage."""
    return (store.passage_text(passage_id), _title(store, passage_id)) if passage_id >= 0 else (None, "no passage")


def _title(store: Store, passage_id: int) -> str:
    return _name(store, int(store.passage_documents[passage_id]))


def _name(store: Store, document: int) -> str:
    """The document's title, or its id if it has none."""
    return one_line(store.titles[document] or store.document_names[document])
