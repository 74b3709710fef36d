"""Words of a text, as BM25 counts them, in any script.

English words are those of bm25s (runs of two or more letters and digits, English stop words removed, no stemming),
except that an underscore ends a word: nDCG@10 on CoSQA .290 → .363, on docstrings .363 → .402, on prose unchanged.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from unicodedata import normalize

import regex
from bm25s.stopwords import STOPWORDS_EN

STOP_WORDS = frozenset(STOPWORDS_EN)

ASCII_WORD = re.compile(r"[a-z0-9]{2,}")  # the same words as PLAIN_WORD in lower-case ASCII text, but faster
PLAIN_WORD = re.compile(r"[^\W_]{2,}")
# Anything but Latin, Greek and Cyrillic letters and common signs, none of which are combining marks or joiners. Text
# without a match has the same words by PLAIN_WORD as by WORD, and PLAIN_WORD is faster.
NOT_PLAIN = re.compile("[^\0-\u02ff\u0370-\u0482\u048a-\u052f\u1e00-\u200b\u200e-\u20cf\u2100-\u2bff]")

# Scripts written without spaces. \p{Nl} has 〇; ー and ﾞ are the long-vowel and voicing signs of Japanese, which belong
# to several scripts.
_SCRIPTS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_UNSPACED = rf"[[[\p{{L}}\p{{Nl}}]&&{_SCRIPTS}]ーｰﾞﾟ]"
_SPACED = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}]"
_WORD_ALONE = r"[\p{Lo}--[\p{Latin}\p{Common}]]"  # letters without case (Hindi, Arabic, Hangul …) that may be a word
_JOINERS = "[\u200c\u200d]"  # ZWNJ and ZWJ shape the letters within a word; at its end they are dropped
WORD = regex.compile(
    rf"(?V1)(?P<run>(?:{_UNSPACED}\p{{M}}*+)++)"
    rf"|(?={_WORD_ALONE}|{_SPACED}\p{{M}}*+{_JOINERS}*+{_SPACED})"
    rf"(?P<word>{_SPACED}[{_SPACED}\p{{M}}]*+(?:{_JOINERS}++[{_SPACED}\p{{M}}]++)*+)"
)
CHARACTER = regex.compile(r"\P{M}\p{M}*+")  # with its combining marks


def words(text: str) -> list[str]:
    """Lower-cased words that are not English stop words, in the order of the text.

    A word is a run of two or more letters and digits with their combining marks. A single letter is a word in scripts
    without upper and lower case. Scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give each pair
    of neighbouring characters, or the character if it has no neighbour. Composed and decomposed text (NFC, NFD) have
    the same words.

    Example:
        >>> words("The cross_entropy of हिन्दी, 機械学習")
        ['cross', 'entropy', 'हिन्दी', '機械', '械学', '学習']
    """
    if text.isascii():
        found: Iterator[str] | list[str] = ASCII_WORD.findall(text.lower())
    else:
        lowered = normalize("NFC", text).lower().replace("i\u0307", "i")  # Python's lower case of Turkish İ
        text = normalize("NFC", lowered)  # again, because a lower-case letter and its mark may compose
        found = _words_of_any_script(text) if NOT_PLAIN.search(text) else PLAIN_WORD.findall(text)
    return [word for word in found if word not in STOP_WORDS]


def _words_of_any_script(text: str) -> Iterator[str]:
    """The same, of lower-case NFC text."""
    for run, word in WORD.findall(text):
        if word:
            yield word
        else:
            characters = CHARACTER.findall(run)
            yield from map("".join, pairwise(characters)) if len(characters) > 1 else characters
