"""A store for search: without windows, and with only the first passages of documents if wanted.

Run: pytest tests/store/test_search_store.py
"""

import numpy as np
from tests.conftest import LENGTHS

from dream.store.build import open_or_build, open_or_build_passages
from dream.store.store import ENCODER


def test_all_passages_are_those_of_a_store_to_train_on(corpus, tokenizer, tmp_path):
    store = open_or_build(tmp_path, corpus, tokenizer, tokenizer, **LENGTHS)
    search = open_or_build_passages(tmp_path, corpus, tokenizer, passage_tokens=24, passages_per_document=None)
    assert len(search.windows) == 0
    assert np.array_equal(search.passages, store.passages)
    assert search.hash != store.hash


def test_beginnings_are_as_long_as_a_model_reads_and_end_with_a_word(corpus, tokenizer, store, tmp_path):
    search = open_or_build_passages(tmp_path, corpus, tokenizer, passage_tokens=24, passages_per_document=1)
    assert search.passage_documents.tolist() == list(range(len(store.texts)))
    for row, passage in enumerate(search.passages):
        text, (first, end) = store.texts[row], passage["characters"]
        assert first == 0
        assert end == len(text) or text[end - 1].isspace() or text[end].isspace()
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = search.passage_batch([row], 24).ids_BT[0].tolist()
        assert found == whole[:24]
        assert 24 <= np.diff(passage["tokens"][ENCODER])[0] < 40
    two = open_or_build_passages(tmp_path, corpus, tokenizer, passage_tokens=24, passages_per_document=2)
    assert np.bincount(two.passage_documents).tolist() == [2] * len(store.texts)
