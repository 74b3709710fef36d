"""Finished runs with each kind of encoder, as folders that `open_run` opens, without a training."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tests.encoders.test_st_folder import OWN

from dream.encoders.base import Encoder
from dream.encoders.hf import HFEncoder
from dream.encoders.static import StaticEncoder
from dream.export.base import Checks, Job
from dream.indexes.exact import ExactIndex
from dream.indexes.snapshot import IndexHandle
from dream.runs.load import FinishedRun
from dream.store.build import open_or_build
from dream.store.store import Store

LENGTHS = {"passage_tokens": 24, "context_tokens": 12, "min_context_tokens": 6, "target_tokens": 8}


@pytest.fixture
def job_of(corpus, corpus_folder, tokenizer, tmp_path):
    """Makes the job of an untrained encoder over the tiny corpus."""

    def make(encoder: Encoder, weights: str = "float32", labels: bool = True, adapter: str = "merged") -> Job:
        own = getattr(encoder, "tokenizer", tokenizer)
        store: Store = open_or_build(tmp_path / "stores", corpus, own, tokenizer, **LENGTHS)
        index = IndexHandle(ExactIndex(65_536, True), tmp_path / "index")
        index.refresh(encoder.eval(), store, 0, "cpu", 64)
        section = {"_target_": "dream.corpora.jsonl.JsonlCorpus", "name": "tiny",
                   "path": str(corpus_folder / "corpus.jsonl"), "id_field": "_id", "title_field": "title",
                   "text_fields": ["text"], "deduplicate": True, "queries": str(corpus_folder / "queries.jsonl"),
                   "qrels": {"dev": str(corpus_folder / "dev.tsv")} if labels else {}, "on_bad_document": "error",
                   "max_document_mb": 32, "language": "english"}  # fmt: skip
        section["queries"] = section["queries"] if labels else None
        run = FinishedRun(OmegaConf.create({}), encoder, store, index)
        return Job(
            run, {"corpus": section}, tmp_path / "run", tmp_path, Checks(20, "dev", 30, 200), weights, adapter, None
        )

    return make


@pytest.fixture
def static(corpus, tokenizer, tmp_path) -> StaticEncoder:
    return random_static(tokenizer, corpus, tmp_path)


def random_static(tokenizer, corpus, tmp_path: Path, max_tokens: int = 24) -> StaticEncoder:
    """A static encoder with random vectors, and weights as before training. Its table has few rows of its own."""
    import torch

    encoder = StaticEncoder(max_tokens=max_tokens, random_width=16, token_embedding_share=0.5, seed=0)
    encoder.adopt_tokenizer(tokenizer)
    store = open_or_build(tmp_path / "stores", corpus, encoder.tokenizer, encoder.tokenizer, **LENGTHS)
    generator = torch.Generator().manual_seed(0)
    encoder.initialize(store, lambda: torch.randn(len(tokenizer), 16, generator=generator))
    return encoder.eval()


def hf(folder: Path, **settings) -> HFEncoder:
    return HFEncoder(str(folder), **(OWN | settings)).eval()
