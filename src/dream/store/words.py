"""Tokenises each distinct word of a corpus once, and not at each of its occurrences."""

import re
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

# White space is dropped. \w includes combining marks. ZWNJ and ZWJ (200c, 200d) between two letters belong to the word.
WORD_OR_SIGN = r"[^\W_]+(?:[\x{200c}\x{200d}]+[^\W_]+)*|[^\w\s]|_"
MOST_WORDS = 400_000  # cached; about 100 MB
MOST_CHARACTERS = 8_000_000
WORDS_OF_A_TEXT = 1000  # new words that are tokenised as one text
# White space for Python, but not for the tokenizer: a separator that is read as text, or removed without splitting.
NO_SPACE = {"regex": r"\x1c-\x1f", "bert": r"\x0b\x0c\x1c-\x1f\x85"}


SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # every Unicode space is at or below U+3000


def spaces(text: str) -> np.ndarray:
    """Whether each character is white space; bool, (characters,)."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return SPACE[np.minimum(codes, len(SPACE) - 1)]


class _Numbers(dict[str, int]):
    """The number of each word; a new word gets the next number, and is added to `new`."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        self.new.append(word)
        return number


class WordTokens:
    """The tokens of texts, put together from the tokens of their words. A word includes the white space before it.

    Args:
        encode: the token ids of each text, and the first character of each token, counted from the first text.
        kind: what `kind_of_words` returns for the tokenizer.
    """

    def __init__(self, encode: Callable[[Sequence[str]], tuple[list[np.ndarray], np.ndarray]], kind: str) -> None:
        space, other = rf"[^\S{NO_SPACE[kind]}]", rf"[\S{NO_SPACE[kind]}]"
        self.encode, self.word, self.space = encode, re.compile(f"{space}*{other}+|{space}+"), re.compile(space)
        self._clear()

    def _clear(self) -> None:
        self.numbers, self.characters = _Numbers(), 0
        self.ids_T: np.ndarray = np.empty(0)  # tokens of all cached words
        self.starts_T = np.empty(0, dtype=np.int64)  # first character of each token in its word
        self.ends_W = np.empty(0, dtype=np.int64)  # end of each word's tokens

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids_T, starts_T, bounds) as in `Tokens`."""
        if len(self.numbers) > MOST_WORDS or self.characters > MOST_CHARACTERS:
            self._clear()
        rows = [self.word.findall(text) for text in texts]
        words = list(chain.from_iterable(rows))
        word_I = np.fromiter(map(self.numbers.__getitem__, words), dtype=np.int64, count=len(words))
        self._read_new()
        first_W = np.append(0, self.ends_W[:-1])
        count_I = (self.ends_W - first_W)[word_I]
        end_I = np.cumsum(count_I)
        source_T = np.arange(end_I[-1]) + np.repeat(first_W[word_I] - (end_I - count_I), count_I)
        starts_T = np.repeat(_starts(words), count_I) + self.starts_T[source_T]
        bounds = np.append(0, end_I)[np.cumsum([0, *map(len, rows)])]
        return self.ids_T[source_T], starts_T, bounds

    def _read_new(self) -> None:
        """Tokenise the words that are new since the last call. They are joined: a tokenizer is slow for short texts."""
        new, self.numbers.new = self.numbers.new, []
        if not new:
            return
        opens = [n for n, word in enumerate(new) if n % WORDS_OF_A_TEXT == 0 or not self.space.match(word)]
        ids, starts_T = self.encode(["".join(new[first:end]) for first, end in pairwise([*opens, len(new)])])
        starts_W = _starts(new)
        word_T = np.searchsorted(starts_W, starts_T, side="right") - 1
        ends_W = np.cumsum(np.bincount(word_T, minlength=len(new))) + len(self.starts_T)
        self.ids_T = np.concatenate([*([self.ids_T] if len(self.ids_T) else []), *ids])
        self.starts_T = np.append(self.starts_T, starts_T - starts_W[word_T])
        self.ends_W = np.append(self.ends_W, ends_W)
        self.characters += sum(map(len, new))


def _starts(words: Sequence[str]) -> np.ndarray:
    """First character of each word, if they follow each other."""
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    return np.cumsum(lengths) - lengths


def kind_of_words(settings: dict[str, Any]) -> str | None:
    """The kind of a tokenizer whose tokens of a word do not depend on other words: a key of NO_SPACE. Otherwise None.

    Such tokenizers are the static encoder's and the scratch scorer's, GPT-2's (also SmolLM2's), and BERT's.

    Args:
        settings: the content of its tokenizer.json.
    """
    normalizer, splitter = _steps(settings["normalizer"]), _steps(settings["pre_tokenizer"])
    if not splitter or not all(token["special"] for token in settings["added_tokens"]):
        return None
    if settings["model"]["type"] not in ("BPE", "WordPiece") or settings["model"].get("dropout"):
        return None
    kinds, (*_, last) = {step["type"] for step in normalizer}, splitter
    if [step["type"] for step in splitter] == ["BertPreTokenizer"]:
        return "bert" if kinds <= {"BertNormalizer", "Lowercase"} else None
    if _drops_space(splitter[0]):
        local = {step["type"] for step in splitter[1:]} <= {"Digits", "ByteLevel"}
        return "regex" if local and kinds <= {"NFC", "Lowercase"} else None
    local = {step["type"] for step in splitter[:-1]} <= {"Digits"} and last["type"] == "ByteLevel"
    return "regex" if local and not kinds and last["use_regex"] and not last["add_prefix_space"] else None


def _drops_space(step: dict) -> bool:
    is_split = step["type"] == "Split" and step["pattern"] == {"Regex": WORD_OR_SIGN}
    return is_split and step["behavior"] == "Removed" and step["invert"]


def _steps(settings: dict | None) -> list[dict]:
    """The steps of a normalizer or pre-tokenizer."""
    if settings is None:
        return []
    nested = settings.get("normalizers", settings.get("pretokenizers"))
    return [settings] if nested is None else [inner for step in nested for inner in _steps(step)]
