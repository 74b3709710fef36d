"""Only tokens of the corpus are trained; a word has one spelling. Run: pytest tests/encoders/test_static.py"""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dream.encoders.base import Encoder
from dream.encoders.static import StaticEncoder
from dream.encoders.word_tokenizer import word_tokenizer
from dream.store.ragged import pad_tokens


def trained(store, tokenizer, all_rows: bool, steps: int = 3) -> StaticEncoder:
    """Steps of AdamW towards random directions, on all passages' first tokens."""
    draw = torch.Generator().manual_seed(0)
    table_VD = torch.randn(len(tokenizer), 16, generator=draw)
    encoder = StaticEncoder(max_tokens=24, random_width=8, token_embedding_share=0.5, seed=0)
    encoder.adopt_tokenizer(tokenizer)
    encoder.initialize(store, lambda: table_VD)
    if all_rows:
        weights = encoder.weights()
        encoder._set(weights["table_VD"], weights["weight_V"])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.0)
    target_BD = torch.randn(64, 24, generator=draw)
    for step in range(steps):
        batch = store.passage_batch(torch.arange(64) + 64 * step, 24)
        loss = -(encoder(batch, "passage") * target_BD).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


def test_the_weights_are_those_of_training_all_rows(store, tokenizer):
    few, all_rows = (trained(store, tokenizer, every) for every in (False, True))
    unused = torch.from_numpy(store.encoder_document_frequency) == 0
    assert 0 < len(few.table_VD) < len(all_rows.table_VD)
    assert len(few.other_VD) == unused.sum()
    for name, weight in few.weights().items():  # rounding may differ: the rows stand elsewhere in memory
        torch.testing.assert_close(weight, all_rows.weights()[name], rtol=0, atol=1e-6)
    untrained = trained(store, tokenizer, all_rows=False, steps=0)
    assert torch.equal(few.weights()["table_VD"][unused], untrained.weights()["table_VD"][unused])
    assert not torch.equal(few.table_VD, untrained.table_VD)


def test_tokens_that_the_corpus_lacks_have_vectors_and_are_saved(store, tokenizer, tmp_path):
    encoder = trained(store, tokenizer, all_rows=False)
    other = int((torch.from_numpy(store.encoder_document_frequency) == 0).nonzero()[-1])
    batch = pad_tokens([[other], [other, 50, 60], [50]], 0)
    table_VD, weight_V = encoder.weights().values()
    expected_D = (weight_V[[other, 50, 60], None] * table_VD[[other, 50, 60]]).sum(0)
    embedding_BD = encoder(batch, "query")
    torch.testing.assert_close(embedding_BD[1], nn.functional.normalize(expected_D, dim=0))
    encoder.save(tmp_path)
    again = StaticEncoder.open(tmp_path)
    torch.testing.assert_close(again(batch, "query"), embedding_BD)
    assert again.fingerprint() == encoder.fingerprint()


def test_an_opened_encoder_reads_texts_as_transformers_does(cased, tmp_path):
    encoder = StaticEncoder(max_tokens=6, random_width=4, token_embedding_share=0.5, seed=0)
    encoder.adopt_tokenizer(cased)
    encoder._set(torch.randn(len(cased), 4, generator=torch.Generator().manual_seed(0)), torch.ones(len(cased)))
    texts = ["Read the file", "", "read <eos> the file", "a longer text than the six tokens that are read", "é 日本"]
    expected_BD = Encoder.embed_batch(encoder, texts, "query", torch.device("cpu"))
    encoder.save(tmp_path)
    for each in (encoder, StaticEncoder.open(tmp_path)):
        assert torch.equal(each.embed_texts(texts, "query"), expected_BD)
        assert each.tokenizer.get_vocab() == encoder.tokenizer.get_vocab()


@pytest.fixture(scope="module")
def cased() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer like that of a language model, with case and blanks."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["read a File, Read THE file, the read_file file"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def test_a_word_has_the_same_tokens_everywhere(cased, tmp_path):
    words = word_tokenizer(cased)
    assert cased.tokenize("File") != cased.tokenize("file") != cased.tokenize(" file")
    assert words.tokenize("Read_FILE") == [*words.tokenize("read"), "Ġ", "_", *words.tokenize(" file")]
    assert words.tokenize("file (File)  FILE").count("Ġfile") == 3
    assert words.get_vocab() == cased.get_vocab()
    assert words.pad_token == "<eos>"
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("Read_FILE") == words.tokenize("Read_FILE")
    assert word_tokenizer(again) is again


def test_a_tokenizer_that_lower_cases_is_used_as_it_is(tokenizer):
    assert word_tokenizer(tokenizer) is tokenizer
