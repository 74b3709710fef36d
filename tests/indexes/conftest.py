"""A tiny store and the static encoder over it, for the tests of the indexes."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from dream.corpora.jsonl import JsonlCorpus
from dream.encoders.static import StaticEncoder
from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer
from dream.store.build import open_or_build
from dream.store.store import Store

ANIMALS = "ant bee cat dog elk fox gnu hen ibis jay koi lynx moth newt owl pig quail rat seal toad"
WORDS = ANIMALS.split()


def make_store(folder: Path, documents: int) -> tuple[Store, AutoTokenizer]:
    """Documents of 24 to 40 words, cut into passages of 8 tokens."""
    file = folder / f"animals-{documents}.jsonl"
    generator = torch.Generator().manual_seed(documents)
    with file.open("w") as lines:
        for number in range(documents):
            picks = torch.randint(len(WORDS), (24 + number % 17,), generator=generator).tolist()
            text = " ".join(WORDS[pick] for pick in picks)
            lines.write(json.dumps({"_id": f"d{number}", "title": f"Title {number}", "text": text}) + "\n")
    corpus = JsonlCorpus("animals", str(file), "_id", "title", ["text"], False, None, None, "error", 32, None)
    tokenizer = AutoTokenizer.from_pretrained(open_or_train_tokenizer(folder / "tokenizers", corpus, 400))
    store = open_or_build(
        folder / "stores",
        corpus,
        tokenizer,
        tokenizer,
        passage_tokens=8,
        context_tokens=10,
        min_context_tokens=4,
        target_tokens=4,
    )
    return store, tokenizer


def make_encoder(store: Store, tokenizer: AutoTokenizer, width: int = 16, seed: int = 0) -> StaticEncoder:
    """Initialised from random token embeddings instead of a scorer's."""
    table_VD = torch.randn(len(tokenizer), width, generator=torch.Generator().manual_seed(seed))
    encoder = StaticEncoder(max_tokens=6, random_width=0, token_embedding_share=1.0, seed=0)
    encoder.adopt_tokenizer(tokenizer)
    encoder.initialize(store, lambda: table_VD)
    return encoder


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    """store, tokenizer, an encoder of width 16 that no test changes, and functions that make more of them."""
    store, tokenizer = make_store(tmp_path_factory.mktemp("world"), documents=40)
    return SimpleNamespace(
        store=store,
        tokenizer=tokenizer,
        encoder=make_encoder(store, tokenizer),
        make_store=make_store,
        make_encoder=partial(make_encoder, store, tokenizer),
    )
