"""The scratch scorer's tokenizer in any script. Run: pytest tests/scorers/pretraining/test_tokenizer.py"""

import json
from unicodedata import category, normalize

import pytest
from transformers import AutoTokenizer

from dream.corpora.jsonl import JsonlCorpus
from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer
from dream.store.build import open_or_build
from dream.store.tokens import BatchTokenizer

TEXTS = [
    "हिन्दी विकिपीडिया विद्यालय शिक्षक संग्रहालय",
    "Zürich café naïve Ünal señor",
    "한국어 위키백과 대학교",
    "ภาษาไทย สวัสดี",
    "می\u200cخواهم العَرَبِيَّة",
    "Việt Nam tiếng Việt",
]


@pytest.fixture(scope="module")
def decomposed(tmp_path_factory):
    """A corpus whose documents are all decomposed, each text many times in another order."""
    file = tmp_path_factory.mktemp("decomposed") / "corpus.jsonl"
    with file.open("w") as lines:
        for number, text in enumerate(TEXTS):
            words = text.split()
            long = normalize("NFD", " ".join(words[place % len(words)] for place in range(7, 60 + number)))
            lines.write(json.dumps({"_id": f"d{number}", "text": long}) + "\n")
    return JsonlCorpus("decomposed", str(file), "_id", "title", ["text"], False, None, None, "error", 32, None)


@pytest.fixture(scope="module")
def many_scripts(tmp_path_factory, decomposed):
    folder = open_or_train_tokenizer(tmp_path_factory.mktemp("tokenizers"), decomposed, 600)
    return AutoTokenizer.from_pretrained(folder)


def test_normal_forms_and_case_do_not_matter(many_scripts):
    for text in TEXTS:
        ids = [many_scripts(normalize(form, text), add_special_tokens=False)["input_ids"] for form in ("NFC", "NFD")]
        assert ids[0] == ids[1] == many_scripts(text.upper(), add_special_tokens=False)["input_ids"]


def test_marks_and_joiners_stay_with_their_word(many_scripts):
    split = many_scripts.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for text in TEXTS:
        assert len(split(normalize("NFC", text))) == len(text.split())
    assert len(split("a_b, c\u200d")) == 6  # a joiner at the end of a word is a sign, as before


def test_tokens_of_decomposed_text_begin_at_their_letters(many_scripts):
    """ü is two characters of the decomposed text. No token begins at the second, the diaeresis."""
    text = normalize("NFD", "Zürich, Zürich")
    tokenizer = BatchTokenizer(many_scripts)
    tokens = tokenizer([text])
    assert tokenizer.bytes_V is None  # its tokens are not the text's bytes
    comma, second = text.index(","), text.index("Z", 1)
    assert {0, comma, second} <= set(tokens.starts_T.tolist())
    assert all(category(text[start]) != "Mn" for start in tokens.starts_T)


def test_passages_of_a_decomposed_corpus_cover_it_and_never_begin_with_a_mark(many_scripts, decomposed, tmp_path):
    store = open_or_build(tmp_path, decomposed, many_scripts, many_scripts, passage_tokens=5, context_tokens=6,
                          min_context_tokens=3, target_tokens=4)  # fmt: skip
    assert len(store.passages) > 50
    for document in range(len(store.texts)):
        own = [number for number, row in enumerate(store.passages) if row["document"] == document]
        parts = [store.passage_text(number) for number in own]
        assert "".join(parts) == store.texts[document]
        assert not any(category(part[0]).startswith("M") for part in parts)
        for number, part in zip(own, parts, strict=True):
            expected = many_scripts(part, add_special_tokens=False)["input_ids"]
            assert store.passage_tokens(number, 0).tolist() == expected
