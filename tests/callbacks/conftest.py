"""A module as small as the callbacks allow: a real encoder and index, trained on window ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from dream.batch import TokenBatch, WindowBatch
from dream.build import build_module, build_text, build_trainer
from dream.callbacks.learning_monitor import LearningMonitor, Thresholds
from dream.encoders.static import StaticEncoder
from dream.indexes.exact import ExactIndex
from dream.indexes.snapshot import IndexHandle
from dream.store.ragged import pad_tokens
from dream.utils.runtime import CONFIG_DIR
from dream.utils.timing import Timer

BATCH, CANDIDATES = 4, 3
WINDOWS = range(0, 640, 10)  # of different documents
APART = 50  # passages between two candidates of a window, so that they are of different documents


def make_encoder(store, tokenizer) -> StaticEncoder:
    """Initialised from a random table instead of a scorer's."""
    table_VD = torch.randn(len(tokenizer), 16, generator=torch.Generator().manual_seed(0))
    encoder = StaticEncoder(max_tokens=24, random_width=0, token_embedding_share=1.0, seed=0)
    encoder.adopt_tokenizer(tokenizer)
    encoder.initialize(store, lambda: table_VD)
    return encoder


class RecordingHandle(IndexHandle):
    """Records the step of each refresh and each opened path."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ExactIndex(1000, True), folder)
        self.refreshed: list[int] = []
        self.opened: list[str] = []

    def refresh(self, encoder, store, step, device, batch_passages):
        self.refreshed.append(step)
        return super().refresh(encoder, store, step, device, batch_passages)

    def open(self, path, store, width=None, fingerprint=None):
        super().open(path, store, width, fingerprint)
        self.opened.append(str(path))


class TinyModule(L.LightningModule):
    """Pulls windows to passages of the same number; returns the same tensors as RetrieverModule."""

    def __init__(self, store, tokenizer, run: Path) -> None:
        super().__init__()
        self.encoder = make_encoder(store, tokenizer)
        self.store, self.index = store, RecordingHandle(run / "index")
        self.posterior, self.timer = True, Timer()

    def training_step(self, batch: WindowBatch, batch_idx: int):
        query_BD = self.encoder(batch.context, "query")
        ids_BK = (batch.window_ids_B[:, None] + torch.arange(CANDIDATES) * APART) % len(self.store.passages)
        passages = self.encoder(self.store.passage_batch(ids_BK.flatten(), 24), "passage")
        sim_BK = torch.einsum("bd,bkd->bk", query_BD, passages.view(*ids_BK.shape, -1))
        loss = -sim_BK[:, 0].mean()
        if not self.posterior:
            return {"loss": loss}
        posterior_BK = torch.tensor([0.2, 0.7, 0.1]).expand(len(ids_BK), -1)
        ids_BK[:, 2] = -1
        outputs = {"loss": loss, "candidate_ids_SK": ids_BK, "posterior_SK": posterior_BK}
        return outputs | {"retriever_SK": sim_BK.detach().softmax(1), "gain_S": torch.full((len(ids_BK),), 0.25)}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(WINDOWS, batch_size=BATCH, collate_fn=self.batch)

    def batch(self, window_ids: list[int]) -> WindowBatch:
        contexts = [self.store.window_tokens(window, 0)[0] for window in window_ids]
        context: TokenBatch = pad_tokens(contexts, 0)
        return WindowBatch(
            0, torch.tensor(window_ids), torch.zeros(len(window_ids)), context, context, torch.arange(len(window_ids))
        )

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


TINY_RUN = [
    "corpus=jsonl", "corpus.text_fields=[text]", "scorer=hf", "scorer.scoring.compile=false",
    "encoder.random_width=16", "data.batch_size=8", "data.passage_tokens=24", "data.context_tokens=12",
    "data.min_context_tokens=6", "data.target_tokens=8", "candidates.k=4", "candidates.scored_windows=3",
    "trainer.max_steps=12", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false", "callbacks.index_refresh.every_n_steps=5", "callbacks.progress=null",
    "callbacks.last_checkpoint.every_n_train_steps=2", "callbacks.candidate_panels=null", "logger=csv",
]  # fmt: skip


@pytest.fixture
def tiny_overrides(corpus_folder, llama_folder, tmp_path):
    """tiny_overrides(run) → the command line of a run of RetrieverModule with all its real parts"""

    def make(run: str) -> list[str]:
        inputs = [f"corpus.path={corpus_folder / 'corpus.jsonl'}", f"scorer.name={llama_folder}"]
        outputs = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path}", f"paths.run={tmp_path / run}"]
        return [*TINY_RUN, *inputs, *outputs]

    return make


@pytest.fixture
def labels(corpus_folder) -> list[str]:
    """Overrides that give a tiny run labelled queries, as dev and as report split."""
    qrels = f"corpus.qrels={{dev: {corpus_folder / 'dev.tsv'}}}"
    return [f"corpus.queries={corpus_folder / 'queries.jsonl'}", qrels, "evaluation.report_split=dev"]


@pytest.fixture
def tiny_config(tiny_overrides):
    """tiny_config(run, *overrides) → the config of a tiny run"""

    def make(run: str, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose("train", [*tiny_overrides(run), *overrides])

    return make


@pytest.fixture
def train_retriever(tiny_config):
    """train_retriever(run, *overrides, disturb, ckpt, callbacks, limits) → (module, trainer)

    `disturb(module)` is called before training; `callbacks` are added at the end of the list; `limits` are the
    thresholds of the learning monitor that differ from the defaults, which are too slow for a run of 12 steps.
    """

    def train(
        run: str,
        *overrides: str,
        disturb: Callable = lambda module: None,
        ckpt: Path | None = None,
        callbacks: tuple[L.Callback, ...] = (),
        limits: dict | None = None,
    ):
        cfg = tiny_config(run, *overrides)
        L.seed_everything(0, verbose=False)
        text = build_text(cfg)
        module, trainer = build_module(cfg, text), build_trainer(cfg, text.corpus)
        trainer.callbacks.extend(callbacks)
        for callback in trainer.callbacks:
            if isinstance(callback, LearningMonitor):
                callback.limits = Thresholds(**{"steps": 4} | (limits or {}))
        disturb(module)
        trainer.fit(module, text.data, ckpt_path=ckpt, weights_only=True)
        return module, trainer

    return train


CONSTANT_RATE = "optimizer.schedule={_target_: tests.callbacks.conftest.constant_rate}"


def constant_rate(optimizer: torch.optim.Optimizer, max_steps: int, **_: Any) -> LambdaLR:
    """Does not depend on the number of steps, so a run of fewer steps is the start of a longer one."""
    return LambdaLR(optimizer, lambda step: 1.0)
