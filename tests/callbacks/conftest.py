"""A module as small as the callbacks allow: a real encoder and index, trained on window ids."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from dream.batch import TokenBatch, WindowBatch
from dream.encoders.static import StaticEncoder
from dream.indexes.generation import IndexHandle
from dream.indexes.torch import TorchIndex
from dream.store.ragged import pad_tokens

BATCH, CANDIDATES = 4, 3


def make_encoder(store, tokenizer) -> StaticEncoder:
    """Initialised from a random table instead of a scorer's."""
    table_VD = torch.randn(len(tokenizer), 16, generator=torch.Generator().manual_seed(0))
    scorer = SimpleNamespace(tokenizer=tokenizer, token_embeddings=lambda: table_VD, load=lambda store: None)
    encoder = StaticEncoder(scorer, max_tokens=24, random_width=0, scorer_share=1.0, seed=0)
    encoder.load(store, scorer)
    return encoder


class RecordingHandle(IndexHandle):
    """Notes the step of each refresh and each opening."""

    def __init__(self, folder: Path) -> None:
        super().__init__(TorchIndex(1000, True), folder)
        self.refreshed: list[int] = []
        self.opened: list[str] = []

    def refresh(self, encoder, store, step, device, batch_passages):
        self.refreshed.append(step)
        return super().refresh(encoder, store, step, device, batch_passages)

    def open(self, path, store, width=None, fingerprint=None):
        super().open(path, store, width, fingerprint)
        self.opened.append(str(path))


class TinyModule(L.LightningModule):
    """Pulls windows to passages of the same number; says what RetrieverModule's training step says."""

    def __init__(self, store, tokenizer, run: Path) -> None:
        super().__init__()
        self.encoder = make_encoder(store, tokenizer)
        self.store, self.index = store, RecordingHandle(run / "index")
        self.posterior = True

    def training_step(self, batch: WindowBatch, batch_idx: int):
        query_BD = self.encoder(batch.context, "query")
        ids_BK = (batch.window_ids_B[:, None] + torch.arange(CANDIDATES)) % len(self.store.passages)
        passages = self.encoder(self.store.passage_batch(ids_BK.flatten(), 24), "passage")
        sim_BK = torch.einsum("bd,bkd->bk", query_BD, passages.view(*ids_BK.shape, -1))
        loss = -sim_BK[:, 0].mean()
        if not self.posterior:
            return {"loss": loss}
        posterior_BK = torch.tensor([0.2, 0.7, 0.1]).expand(len(ids_BK), -1)
        ids_BK[:, 2] = -1
        retriever_BK = sim_BK.detach().softmax(1)
        return {"loss": loss, "candidate_ids_SK": ids_BK, "posterior_SK": posterior_BK, "retriever_SK": retriever_BK}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(64), batch_size=BATCH, collate_fn=self.batch)

    def batch(self, window_ids: list[int]) -> WindowBatch:
        contexts = [self.store.window_tokens(window, 0)[0] for window in window_ids]
        context: TokenBatch = pad_tokens(contexts, 0)
        return WindowBatch(0, torch.tensor(window_ids), torch.zeros(len(window_ids)), context, context)

    def configure_optimizers(self):
        return torch.optim.SGD(self.encoder.parameters(), lr=1.0)


@pytest.fixture
def train(store, tokenizer):
    """train(run, callbacks, max_steps, …) → (module, trainer)"""

    def train(run: Path, callbacks: list[L.Callback], max_steps: int, ckpt=None, posterior=True, **options):
        module = TinyModule(store, tokenizer, run)
        module.posterior = posterior
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        checkpointing = any(isinstance(callback, L.pytorch.callbacks.Checkpoint) for callback in callbacks)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            callbacks=callbacks,
            enable_checkpointing=checkpointing,
            log_every_n_steps=1,
            default_root_dir=run,
            **(quiet | options),
        )
        trainer.fit(module, ckpt_path=ckpt)
        return module, trainer

    return train
