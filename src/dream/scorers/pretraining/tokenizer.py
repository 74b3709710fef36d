"""The byte-pair encoding of the scratch scorer, trained on the corpus."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dream.corpora.base import Corpus
from dream.store.build import sample_texts
from dream.store.parallel import parallel_tokenizers
from dream.store.words import WORD_OR_SIGN
from dream.utils.atomic_io import fingerprint
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.logging import get_logger

log = get_logger(__name__)

BOS, SEP, PAD = "<bos>", "<sep>", "<pad>"
TOKENIZATION = 3  # increase it when the pipeline below changes; cached tokenizers are then trained again
SAMPLE_MEGABYTES = 30  # maximum size of the training text, spread over the corpus


def open_or_train_tokenizer(folder: Path, corpus: Corpus, vocabulary: int) -> Path:
    """Path of a byte-level BPE tokenizer for this corpus. If it is not cached, it is trained on a sample of the corpus.

    Args:
        folder: folder of the cached tokenizers.
        vocabulary: number of tokens.
    """
    description = {
        "tokenization": TOKENIZATION,
        "corpus": corpus.fingerprint(),
        "vocabulary": vocabulary,
        "sample_megabytes": SAMPLE_MEGABYTES,
    }
    path = folder / f"{corpus.name}-{fingerprint(description)}"
    if not verify_or_discard(path):
        log.info(f"Training a tokenizer with {vocabulary:,} tokens on corpus {corpus.name}")
        tokenizer = Tokenizer(models.BPE())
        # Retrieval needs the same tokens for a word everywhere: after a space, a bracket or an underscore, in upper and
        # lower case, composed (NFC) and decomposed (NFD). White space is dropped: a language model hardly needs it.
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORD_OR_SIGN), behavior="removed", invert=True),
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
