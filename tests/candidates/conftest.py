"""Stores whose tokens are their words, so that passages and windows can be laid out by hand."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dream.batch import TokenBatch, WindowBatch
from dream.corpora.jsonl import JsonlCorpus
from dream.store.build import open_or_build


@pytest.fixture
def make_store(tmp_path):
    """Builds a store from texts; windows are `context` words and then `target` words."""

    def make(texts, passage=100, context=1, target=1):
        vocabulary = {word: number for number, word in enumerate(dict.fromkeys(" ".join(["?", *texts]).split()))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", pad_token="?")
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps({"_id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
        corpus = JsonlCorpus("hand", str(path), "_id", "title", ["text"], False, None, None, "error", 32)
        return open_or_build(
            tmp_path / "stores",
            corpus,
            words,
            words,
            passage_tokens=passage,
            context_tokens=context,
            min_context_tokens=context,
            target_tokens=target,
        )

    return make


@pytest.fixture
def batch_of():
    """The WindowBatch of these windows, as if the run had consumed `consumed` with it."""

    def make(store, window_ids, consumed=None):
        window_ids_B = torch.as_tensor(window_ids)
        documents_B = torch.from_numpy(store.windows["document"][window_ids_B.numpy()].copy())
        empty = TokenBatch(
            torch.zeros(len(window_ids_B), 1, dtype=torch.int64), torch.ones(len(window_ids_B), 1).bool()
        )
        return WindowBatch(consumed or len(window_ids_B), window_ids_B, documents_B, empty, empty)

    return make
