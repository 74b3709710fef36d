"""Small tokenizers of the kinds that published encoders have, trained in a moment on the text below."""

import copy
import functools
import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "the river stone lies in the river, and the water runs over the stone",
    "query: a question about rivers. passage: an answer about stones (and 7 rivers)",
    "search the text: find the stone; read the river; water, water, water!",
    "Émile writes 12 letters; émile reads the 7 answers",
] * 20
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def _wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    first, last = backend.token_to_id("<s>"), backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def trained_once(make: Callable[[], PreTrainedTokenizerFast]) -> Callable[[], PreTrainedTokenizerFast]:
    """Equal tokenizers from every call: two trainings on the same text can number the tokens differently."""
    cached = functools.cache(make)
    return functools.wraps(make)(lambda: copy.deepcopy(cached()))


@trained_once
def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL))
    return _wrapped(backend)


def _byte_level(add_prefix_space: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TEXT, trainer)
    return _wrapped(backend)


@trained_once
def byte_level() -> PreTrainedTokenizerFast:
    """The kind of GPT-2, RoBERTa and Llama 3."""
    return _byte_level(add_prefix_space=False)


@trained_once
def byte_level_with_space() -> PreTrainedTokenizerFast:
    return _byte_level(add_prefix_space=True)


@trained_once
def unigram() -> PreTrainedTokenizerFast:
    """The kind of XLM-R and T5: SentencePiece with a blank before each text."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=False)])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>")
    backend.train_from_iterator(TEXT, trainer)
    return _wrapped(backend)


@trained_once
def word_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return _wrapped(backend)


@trained_once
def split_then_byte_level() -> PreTrainedTokenizerFast:
    """Qwen's kind: a regular expression splits the text before the bytes are mapped."""
    tokenizer = byte_level()
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    pattern = {"Regex": r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    settings["pre_tokenizer"]["use_regex"] = False
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, settings["pre_tokenizer"]]}
    return _wrapped(Tokenizer.from_str(json.dumps(settings)))


KINDS = {
    function.__name__: function
    for function in (word_piece, byte_level, byte_level_with_space, unigram, word_level, split_then_byte_level)
}
