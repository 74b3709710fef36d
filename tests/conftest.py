"""A tiny labelled corpus and tiny random models, made here, so that every test runs offline and in seconds."""

import json
import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dream.utils.runtime  # noqa: F401, I001  before torch, as in every entry point

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dream.corpora.jsonl import JsonlCorpus
from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer
from dream.store.build import open_or_build
from dream.store.store import Store
from dream.utils.runtime import CONFIG_DIR

DOCUMENTS, TOPICS = 80, 8
LENGTHS = {"passage_tokens": 24, "context_tokens": 12, "min_context_tokens": 6, "target_tokens": 8}


def write_corpus(folder: Path) -> Path:
    """Documents of invented words, ten a topic; a query is two words that only its document has."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    word = lambda: "".join(draw.choices(syllables, k=3))  # noqa: E731
    topics = [[word() for _ in range(30)] for _ in range(TOPICS)]
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "corpus.jsonl").open("w") as corpus,
        (folder / "queries.jsonl").open("w") as queries,
        (folder / "dev.tsv").open("w") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number in range(DOCUMENTS):
            own = [word() for _ in range(4)]
            text = " ".join(draw.choices(topics[number % TOPICS], k=40) + own * 3 + draw.choices(own, k=10))
            corpus.write(json.dumps({"_id": f"d{number}", "title": f"Document {number}", "text": text}) + "\n")
            queries.write(json.dumps({"_id": f"q{number}", "text": " ".join(own[:2])}) + "\n")
            qrels.write(f"q{number}\td{number}\t1\n")
    return folder


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def corpus(corpus_folder) -> JsonlCorpus:
    return JsonlCorpus(
        name="tiny",
        path=str(corpus_folder / "corpus.jsonl"),
        id_field="_id",
        title_field="title",
        text_fields=["text"],
        deduplicate=True,
        queries=str(corpus_folder / "queries.jsonl"),
        qrels={"dev": str(corpus_folder / "dev.tsv")},
        on_bad_document="error",
        max_document_mb=32,
        language="english",
    )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, corpus) -> PreTrainedTokenizerFast:
    folder = open_or_train_tokenizer(tmp_path_factory.mktemp("tokenizers"), corpus, 400)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def store(tmp_path_factory, corpus, tokenizer) -> Store:
    return open_or_build(tmp_path_factory.mktemp("stores"), corpus, tokenizer, tokenizer, **LENGTHS)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory, tokenizer) -> Path:
    """A random Llama of two layers with the tiny tokenizer, as `from_pretrained` wants it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_overrides(corpus_folder, llama_folder) -> list[str]:
    """Overrides of a tiny run of 6 steps with a refresh after step 3, without folders."""
    return [
        "corpus=jsonl",
        f"corpus.path={corpus_folder / 'corpus.jsonl'}",
        f"corpus.queries={corpus_folder / 'queries.jsonl'}",
        f"corpus.qrels={{dev: {corpus_folder / 'dev.tsv'}}}",
        "corpus.text_fields=[text]",
        "evaluation.report_split=dev",
        "scorer=hf",
        f"scorer.name={llama_folder}",
        "scorer.scoring.compile=false",  # compiling takes longer than the run
        "data.batch_size=4",
        "data.passage_tokens=24",
        "data.context_tokens=12",
        "data.min_context_tokens=6",
        "data.target_tokens=8",
        "candidates.k=4",
        "candidates.scored_windows=3",
        "trainer.max_steps=6",
        "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu",
        "+trainer.enable_progress_bar=false",
        "callbacks.progress=null",
        "callbacks.index_refresh.every_n_steps=3",
        "callbacks.last_checkpoint.every_n_train_steps=2",
    ]


@pytest.fixture
def config(run_overrides, tmp_path):
    """Composes the training config of a tiny run; each call gets a run folder of its own."""

    def make(run: str, *overrides: str) -> DictConfig:
        folders = [
            f"paths.data={tmp_path / 'data'}",
            f"paths.logs={tmp_path / 'logs'}",
            f"paths.run={tmp_path / 'logs' / run}",
        ]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose("train", [*run_overrides, *folders, *overrides])

    return make
