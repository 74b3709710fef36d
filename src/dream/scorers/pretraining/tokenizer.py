"""The byte-pair encoding of the scratch scorer, trained on the corpus itself."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dream.corpora.base import Corpus
from dream.store.build import parallel_tokenizers, sample_texts
from dream.utils.atomic_io import fingerprint
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.logging import get_logger

log = get_logger(__name__)

BOS, SEP, PAD = "<bos>", "<sep>", "<pad>"
TOKENIZATION = 2  # raise when the pipeline below changes, so that cached tokenizers are trained again
SAMPLE_MEGABYTES = 30  # text to train on, at most, spread over the corpus
# A word is the same token wherever it stands: after a space, a bracket or an underscore, in capitals or not. Retrieval
# lives on that; white space is dropped, and a language model hardly misses it.
WORD_OR_SIGN = Regex(r"[^\W_]+|[^\w\s]|_")


def open_or_train_tokenizer(folder: Path, corpus: Corpus, vocabulary: int) -> Path:
    """Path of a byte-level BPE trained on a sample of the corpus; trained first where it is not cached."""
    description = {
        "tokenization": TOKENIZATION,
        "corpus": corpus.fingerprint(),
        "vocabulary": vocabulary,
        "sample_megabytes": SAMPLE_MEGABYTES,
    }
    path = folder / f"{corpus.name}-{fingerprint(description)}"
    if not verify_or_discard(path):
        log.info(f"Training a tokenizer of {vocabulary:,} entries on corpus {corpus.name}")
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
            tokenizer.train_from_iterator(sample_texts(corpus, SAMPLE_MEGABYTES * 1_000_000), trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, sep_token=SEP, pad_token=PAD)
        with new_directory(path) as unfinished:
            fast.save_pretrained(unfinished)
    return path
