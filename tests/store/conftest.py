"""A tokenizer that keeps every byte of the text, including white space, so that its tokens decode to the same text."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dream.encoders.word_tokenizer import word_tokenizer
from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer


@pytest.fixture(scope="session")
def tokenizer(corpus) -> PreTrainedTokenizerFast:
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<bos>", "<sep>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator((document.text for document in corpus.documents()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<bos>", sep_token="<sep>", pad_token="<pad>")


@pytest.fixture(scope="session")
def lower_case_tokenizer(tokenizer) -> PreTrainedTokenizerFast:
    """The static encoder's tokenizer for the same vocabulary: it drops white space and ignores case."""
    return word_tokenizer(tokenizer)


@pytest.fixture(scope="session")
def scratch_tokenizer(tmp_path_factory, corpus) -> PreTrainedTokenizerFast:
    folder = open_or_train_tokenizer(tmp_path_factory.mktemp("scratch"), corpus, 400)
    return PreTrainedTokenizerFast.from_pretrained(folder)
