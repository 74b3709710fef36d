"""Stores laid out by hand, and batches of their windows."""

from functools import partial

import pytest
import torch
from tests.word_store import word_store

from dream.batch import TokenBatch, WindowBatch


@pytest.fixture
def make_store(tmp_path):
    """Builds a store from texts, as `word_store` does."""
    return partial(word_store, tmp_path)


@pytest.fixture
def batch_of():
    """The WindowBatch of these windows, as if the run had consumed `consumed` windows at its end."""

    def make(store, window_ids, consumed=None):
        window_ids_B = torch.as_tensor(window_ids)
        documents_B = torch.from_numpy(store.windows["document"][window_ids_B.numpy()].copy())
        empty = TokenBatch(
            torch.zeros(len(window_ids_B), 1, dtype=torch.int64), torch.ones(len(window_ids_B), 1).bool()
        )
        consumed = consumed or len(window_ids_B)
        positions_B = torch.arange(consumed - len(window_ids_B), consumed)
        return WindowBatch(consumed, window_ids_B, documents_B, empty, empty, positions_B)

    return make
