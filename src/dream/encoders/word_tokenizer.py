"""A tokenizer for bags of tokens: a word has the same tokens wherever it stands, and however it is capitalised."""

from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from dream.store.words import WORD_OR_SIGN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def word_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A copy with the same vocabulary that reads lower-cased words, each as if a blank preceded it.

    Language models have other tokens for "Word", "WORD" and "word", at the beginning of a text and after a blank. They
    need this for the text that they write; a bag of tokens would see up to six different words. The tokens with a blank
    are used, because a language model has seen these most often. A tokenizer that lower-cases texts is returned as it
    is. If it is not byte-level, its copy only lower-cases.
    """
    from transformers import PreTrainedTokenizerFast  # here, because a search does not need it

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or _lower_cases(backend):
        return tokenizer
    copy = Tokenizer.from_str(backend.to_str())
    own = [copy.normalizer] if copy.normalizer else []
    copy.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), *own])
    if isinstance(copy.decoder, decoders.ByteLevel):
        words = pre_tokenizers.Split(Regex(WORD_OR_SIGN), behavior="removed", invert=True)
        with_blank = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
        copy.pre_tokenizer = pre_tokenizers.Sequence([words, with_blank])
    roles = {f"{role}_token": getattr(tokenizer, f"{role}_token", None) for role in ROLES}
    return PreTrainedTokenizerFast(tokenizer_object=copy, **{role: token for role, token in roles.items() if token})


def _lower_cases(backend: Tokenizer) -> bool:
    return backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a"
