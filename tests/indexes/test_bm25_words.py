"""Words of BM25 in any script. Run: pytest tests/indexes/test_bm25_words.py"""

import random
import re
from itertools import pairwise
from unicodedata import category, normalize

import bm25s
import numpy as np
import pytest
from bm25s.stopwords import STOPWORDS_EN
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.word_store import word_store

from dream.corpora.base import LANGUAGES
from dream.indexes.bm25 import BM25Index
from dream.indexes.words import NOT_PLAIN, PLAIN_WORD, Analyzer, _words_of_any_script, stop_words, words

# Unassigned ones are left out: regex may know a newer Unicode than Python.
PLAIN = [chr(code) for code in range(0x3000) if not NOT_PLAIN.match(chr(code)) and category(chr(code)) != "Cn"]
# Letters of a script, without and with marks, from which random words are made.
LETTERS = {
    "Devanagari": [a + b for a in "कखगचजटडतदनपबमयरलवसह" for b in ("", "ा", "ि", "ी", "ु", "े", "ो", "ं", "्")],
    "Bengali": [a + b for a in "কখগচজটডতদনপবমযরলসহ" for b in ("া", "ি", "ী", "ু", "ে", "ো", "ং", "্")],
    "Tamil": [a + b for a in "கசடதபறயரலவநமன" for b in ("", "ா", "ி", "ீ", "ு", "ெ", "்")],
    "Arabic": [a + b for a in "بتثجحدرسصطعفقكلمنهوي" for b in ("", "َ", "ُ", "ِ", "َّ", "ْ")],
    "Hebrew": [a + b for a in "אבגדהוזחטיכלמנסעפצקרשת" for b in ("", "ָ", "ִ", "ּ", "ֶ")],
    "Hangul": [chr(code) for code in range(0xAC00, 0xD7A4, 97)],
    "Latin": [a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in ("", "\u0301", "\u0308", "\u0323\u0302")],
}
UNSPACED = {
    "Thai": [a + b for a in "กขคงจชซดตทนบปผพมยรลวสหอ" for b in ("", "ั", "ิ", "ี", "ุ", "่", "ี่")],
    "Han": [chr(code) for code in range(0x4E00, 0x9FA0, 211)],
    "Japanese": [chr(code) for code in [*range(0x3042, 0x3090), *range(0x30A2, 0x30F4), *range(0x4E00, 0x5200, 9)]],
    "Khmer": [a + b for a in "កខគងចឆជញតថទនបពមយរលវសហអ" for b in ("", "ា", "ិ", "ី", "ុ", "េ")],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में विद्यालय", "हिन्दी में विद्यालय"),  # marks stay with their letters
        ("না ও বাংলা ভাষা", "না ও বাংলা ভাষা"),
        ("தமிழ் மொழி", "தமிழ் மொழி"),
        ("العَرَبِيَّة שָׁלוֹם", "العَرَبِيَّة שָׁלוֹם"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # ZWNJ within a word
        ("क्\u200dष ক্\u200d", "क्\u200dष ক্"),  # ZWJ within a word, and at its end
        ("이 책 한국어", "이 책 한국어"),
        ("机器学习 猫", "机器 器学 学习 猫"),
        ("データを見る", "デー ータ タを を見 見る"),
        ("第3章Python編", "第 章 python 編"),  # a digit by itself is no word
        ("ที่นี่ ๒๕๖๐", "ที่นี่ ๒๕๖๐"),  # two characters with two marks each are one pair; digits are not cut
        ("ປະເທດ", "ປະ ະເ ເທ ທດ"),
        ("Zu\u0308rich ñ q\u0303 Ω я x 5\ufe0f\u20e3", "zürich"),  # single letters with case are dropped, as in English
        ("İstanbul I\u0307zmir H\u0331a", "istanbul izmir ẖa"),
        ("Don't ½ ²² naïve—word", "don ²² naïve word"),
        ("\u0301 \u200d \u093f", ""),
    ],
)
def test_words_by_hand(text, expected):
    assert words(text) == [normalize("NFC", word) for word in expected.split()]


def test_english_words_are_those_of_bm25s_but_an_underscore_ends_one():
    text = "The A-list: torch.nn.cross_entropy__, naïve CAFÉ's 12 x 3.14 and\nÜber"
    [ids], vocabulary = bm25s.tokenize([text.replace("_", " ")], show_progress=False)
    names = {number: word for word, number in vocabulary.items()}
    assert words(text) == [names[number] for number in ids]
    assert words("cross_entropy") == ["cross", "entropy"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Running runners ran; tables, a table and the table's", "run runner ran tabl tabl tabl"),
        ("It is not there, but THESE will be such as those", "those"),  # Lucene's stop words
        ("Cauchy's café’s BOSS'S 's", "cauchi café boss s"),  # possessives, with both apostrophes
        ("Hepatitis B, type 2, don't", "hepat b type 2 don t"),  # single letters and digits count
        ("DataFrame dataframes", "data frame datafram datafram"),  # an identifier counts with its parts
        ("cross_entropy_Loss __init__", "cross entropi loss init"),
        ("HTTPServerError DNAs URLs mRNA utf8", "http server error httpservererror dnas url m rna mrna utf8"),
        ("toString", "string tostr"),  # a part may be a stop word
        ("naïveÉtude E\u0301tudes", "naïv étude naïveétud étude"),
        ("हिन्दी में 機械学習 книги", "हिन्दी में 機械 械学 学習 книги"),  # other scripts as in plain words
    ],
)
def test_english_stems_by_hand(text, expected):
    assert Analyzer("english")(text) == expected.split()


def test_other_languages():
    assert Analyzer("german")("Die Häuser der Stadt") == ["haus", "stadt"]
    assert Analyzer("french")("l'eau des rivières") == ["eau", "rivi"]  # the list of stop words contains l
    assert Analyzer("russian")("о книгах и книгами") == ["книг", "книг"]
    assert Analyzer("hungarian")("a házak") == ["a", "ház"]  # bm25s has no list
    assert stop_words("english") == set(STOPWORDS_EN)
    assert "dell" in stop_words("italian")  # dell' in the list


@settings(max_examples=50, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from([*"aiIİ\u0307\u0301\u200d'’", *"한ñक़ガ"]))))
def test_without_a_language_words_are_plain_and_every_language_takes_any_text(text):
    assert Analyzer(None)(text) == words(text)
    for language in LANGUAGES:
        stems = Analyzer(language)(text)
        assert all(stems)
        if language in ("english", "turkish", "arabic"):
            assert stems == Analyzer(language)(normalize("NFD", text))


def test_every_plain_character_is_the_same_by_the_fast_and_the_general_pattern():
    assert len(PLAIN) > 4_000
    for character in PLAIN:
        for text in (character, f"ab{character}cd", f"{character}{character} a{character}"):
            assert PLAIN_WORD.findall(text) == list(_words_of_any_script(text)), hex(ord(character))


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from([chr(code) for code in range(128)])))
def test_ascii_words_are_runs_of_letters_and_digits(text):
    by_re = [word for word in re.findall(r"[^\W_]{2,}", text.lower()) if words(word)]  # without stop words
    assert words(text) == by_re


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from([*"iIİ\u0307\u0301\u0323\u200d", *"한ñक़ガ"]))))
def test_normal_forms_do_not_matter(text):
    assert words(normalize("NFC", text)) == words(normalize("NFD", text)) == words(text)


@pytest.mark.parametrize("script", [name for name in LETTERS if name != "Latin"])
def test_spaced_words_are_kept_whole(script):
    draw = random.Random(0)
    text = [normalize("NFC", "".join(draw.choices(LETTERS[script], k=draw.randint(1, 6)))) for _ in range(500)]
    assert words(" ".join(text)) == text


@pytest.mark.parametrize("script", UNSPACED)
def test_pairs_of_an_unspaced_text_give_the_text(script):
    draw = random.Random(0)
    for length in range(1, 20):
        letters = draw.choices(UNSPACED[script], k=length)
        pairs = [first + second for first, second in pairwise(letters)] or letters
        assert words("".join(letters)) == [normalize("NFC", pair) for pair in pairs]


@pytest.mark.parametrize("language", [None, "english"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("script", [*LETTERS, *UNSPACED])
def test_a_part_of_a_document_finds_it_first(tmp_path, script, form, language):
    """Documents of 12 words, or of 60 characters without spaces. Queries are 4 words or 12 characters of them, in the
    same and in the other normal form."""
    draw, documents, queries = random.Random(1), [], []
    for _ in range(30):
        if script in LETTERS:
            parts = ["".join(draw.choices(LETTERS[script], k=draw.randint(1, 5))) for _ in range(12)]
            documents.append(normalize(form, " ".join(parts)))
            queries.append(" ".join(parts[4:8]))
        else:
            parts = draw.choices(UNSPACED[script], k=60)
            documents.append(normalize(form, "".join(parts[:30]) + " " + "".join(parts[30:])))
            queries.append("".join(parts[10:22]))
    index = BM25Index.open_or_build(word_store(tmp_path, documents, language=language), unit="document")
    for query_form in ("NFC", "NFD"):
        _, ids_QK = index.search([normalize(query_form, query) for query in queries], 1)
        assert np.array_equal(ids_QK[:, 0], np.arange(30))
