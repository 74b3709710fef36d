"""The byte-pair encoding of the scratch scorer, trained on the corpus itself."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dream.corpora.base import Corpus
from dream.files import fingerprint, new_directory, usable
from dream.runtime import say
from dream.store.build import parallel_tokenizers, sample_texts

BOS, SEP, PAD = "<bos>", "<sep>", "<pad>"
TOKENIZATION = 2  # raise when the pipeline below changes, so that cached tokenizers are made anew
# A word is the same token wherever it stands: after a space, a bracket or an underscore, in capitals or not. Retrieval
# lives on that; white space is dropped, and a language model hardly misses it.
WORD_OR_SIGN = Regex(r"[^\W_]+|[^\w\s]|_")


def open_or_train_tokenizer(folder: Path, corpus: Corpus, vocabulary: int, sample_megabytes: int) -> Path:
    """Path of a byte-level BPE trained on a sample of the corpus; trained first where it is not cached."""
    description = {
        "tokenization": TOKENIZATION,
        "corpus": corpus.fingerprint(),
        "vocabulary": vocabulary,
        "sample_megabytes": sample_megabytes,
    }
    path = folder / f"{corpus.name}-{fingerprint(description)}"
    if not usable(path):
        say(f"Training a tokenizer of {vocabulary:,} entries on corpus {corpus.name}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(WORD_OR_SIGN, behavior="removed", invert=True),
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[BOS, SEP, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with parallel_tokenizers():
            tokenizer.train_from_iterator(sample_texts(corpus, sample_megabytes * 1_000_000), trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, sep_token=SEP, pad_token=PAD)
        with new_directory(path) as aside:
            fast.save_pretrained(aside)
    return path
