"""Splits a text in any script into the words that BM25 counts: plain words, or the stems of a language.

A word is a run of letters and digits; an underscore ends it. In a known language, words are also split where the case
changes. nDCG@10 of whole documents on the dev splits of CoSQA (code) and pydocs (docstrings), without single letters:

    plain words                                      .363  .402
    English stems                                    .380  .431
    also split where the case changes                .379  .441
    and the whole identifier in addition, as here    .381  .444
    also identifiers with underscores as a whole     .383  .442

On prose, identifiers change at most .001. Single letters and digits, which count in a known language, change these
figures by -.001 and +.001, and raise medical questions (hepatitis B, type 2) from .522 to .525.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from unicodedata import normalize

import regex
import Stemmer
from bm25s import stopwords

STOP_WORDS = frozenset(stopwords.STOPWORDS_EN)  # Lucene's English list

ASCII_WORD = re.compile(r"[A-Za-z0-9]+")  # the same words as PLAIN_WORD in ASCII text, but faster
PLAIN_WORD = re.compile(r"[^\W_]+")
# All characters except Latin, Greek and Cyrillic letters and common signs. The exceptions include no combining marks or
# joiners. So in text without a match PLAIN_WORD and WORD find the same words, and PLAIN_WORD is faster.
NOT_PLAIN = re.compile("[^\0-\u02ff\u0370-\u0482\u048a-\u052f\u1e00-\u200b\u200e-\u20cf\u2100-\u2bff]")

# Scripts written without spaces. \p{Nl} contains 〇. ー and ﾞ are Japanese signs for long vowels and voicing. They are
# listed because they belong to several scripts.
_SCRIPTS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_UNSPACED = rf"[[[\p{{L}}\p{{Nl}}]&&{_SCRIPTS}]ーｰﾞﾟ]"
_SPACED = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}]"
_ONE_LETTER_WORD = r"[\p{Lo}--[\p{Latin}\p{Common}]]"  # letters without case (Hindi, Arabic, Hangul …)
_JOINERS = "[\u200c\u200d]"  # ZWNJ and ZWJ change the shape of letters in a word; at its end they are dropped
WORD = regex.compile(
    rf"(?V1)(?P<run>(?:{_UNSPACED}\p{{M}}*+)++)"
    rf"|(?P<word>{_SPACED}[{_SPACED}\p{{M}}]*+(?:{_JOINERS}++[{_SPACED}\p{{M}}]++)*+)"
)
SINGLE = regex.compile(rf"(?V1)(?!{_ONE_LETTER_WORD}){_SPACED}\p{{M}}*+(?:{_JOINERS}++\p{{M}}++)*+")  # not a plain word
POSSESSIVE = re.compile(r"['’](?<=\w.)[sS]\b")  # searching for the apostrophe first is faster
CHARACTER = regex.compile(r"\P{M}\p{M}*+")  # a character with its combining marks
# In an identifier, a word begins at an upper-case letter that follows a lower-case one, and at the last of several
# upper-case letters if two lower-case ones follow it: DataFrame, HTTPServer, but not DNAs.
CASE_CHANGE = regex.compile(r"(?V1)(?<=\p{Ll})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}{2})")


def words(text: str) -> list[str]:
    """Lower-cased words in text order, without English stop words.

    A word is a run of two or more letters and digits with their combining marks. A single letter is a word in scripts
    without upper and lower case. In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each pair of
    neighbouring characters is a word, or a character without a neighbour. Composed and decomposed text (NFC, NFD) have
    the same words.

    Example:
        >>> words("The cross_entropy of हिन्दी, 機械学習")
        ['cross', 'entropy', 'हिन्दी', '機械', '械学', '学習']
    """
    lowered = text.lower() if text.isascii() else _lower(text)
    found = (word for word in _split(lowered) if word not in STOP_WORDS)
    if NOT_PLAIN.search(lowered):
        return [word for word in found if not SINGLE.fullmatch(word)]
    return [word for word in found if len(word) > 1]


class Analyzer:
    """Splits texts into the words that BM25 counts, in one language.

    A word of a known language is split where its case changes; the parts count, and the whole. The English possessive
    ending is dropped. Then words are lower-cased, stop words are left out, and Snowball's stemmer reduces the others to
    their stems. Single letters and digits count: hepatitis B, type 2. Scripts are split as by `words`.

    Args:
        language: one of Snowball's languages; None: `words` splits texts.

    Example:
        >>> Analyzer("english")("The parser's DataFrames")
        ['parser', 'data', 'frame', 'datafram']
    """

    def __init__(self, language: str | None) -> None:
        self.stems = _Stems(language) if language else None
        self.english = language == "english"

    def __call__(self, text: str) -> list[str]:
        stems = self.stems
        if stems is None:
            return words(text)
        if self.english and ("'" in text or "’" in text):
            text = POSSESSIVE.sub("", text)
        return list(chain.from_iterable(map(stems.__getitem__, _split(normalize("NFC", text)))))


class _Stems(dict[str, tuple[str, ...]]):
    """The stems of each word that has occurred, in its case. Each distinct word is analysed once."""

    def __init__(self, language: str) -> None:
        super().__init__()
        self.stem_of = Stemmer.Stemmer(language, 0).stemWord  # 0: without a cache of its own
        self.stop_words = stop_words(language)

    def __missing__(self, word: str) -> tuple[str, ...]:
        parts = CASE_CHANGE.split(word)
        if len(parts) > 1:
            parts.append(word)
        stems = (self.stem_of(part) for part in map(_lower, parts) if part not in self.stop_words)
        self[word] = found = tuple(filter(None, stems))
        return found


def stop_words(language: str) -> frozenset[str]:
    """bm25s' list of stop words, for English Lucene's; empty if it has none. Contractions are split as in texts."""
    name = "EN" if language == "english" else language.upper()
    return frozenset(_split(_lower(" ".join(getattr(stopwords, f"STOPWORDS_{name}", ())))))


def _lower(text: str) -> str:
    """Lower case in NFC. İ becomes i, as in Turkish."""
    lowered = normalize("NFC", text).lower().replace("i\u0307", "i")  # Python's lower case of İ
    return normalize("NFC", lowered)  # again: a lower-case letter and its mark may form one character


def _split(text: str) -> Iterable[str]:
    """The words of NFC text in any script, in their case, with stop words."""
    if text.isascii():
        return ASCII_WORD.findall(text)
    return _words_of_any_script(text) if NOT_PLAIN.search(text) else PLAIN_WORD.findall(text)


def _words_of_any_script(text: str) -> Iterator[str]:
    """The words of NFC text, if it has other scripts than Latin, Greek and Cyrillic."""
    for run, word in WORD.findall(text):
        if word:
            yield word
        else:
            characters = CHARACTER.findall(run)
            yield from map("".join, pairwise(characters)) if len(characters) > 1 else characters
