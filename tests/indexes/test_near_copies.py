"""Groups of near copies. Run: pytest tests/indexes/test_near_copies.py"""

import random

import numpy as np
from tests.word_store import word_store

from dream.indexes.near_copies import NearCopies, find_groups, group, jaccard, shingles

BASE = [f"word{n}" for n in range(60)]


def changed(words: list[str], *places: int) -> str:
    return " ".join("other" if n in places else word for n, word in enumerate(words))


def groups(texts: list[str], least: float = 0.8) -> list[int]:
    return group(iter(texts), texts.__getitem__, len(texts), least).tolist()


def test_jaccard_by_hand():
    """Of 56 shingles, a changed first word changes 1, one in the middle 5: 55 / 57 and 51 / 61."""
    whole = shingles(" ".join(BASE))
    assert len(whole) == 56
    assert jaccard(whole, shingles(changed(BASE, 0))) == 55 / 57
    assert jaccard(whole, shingles(changed(BASE, 30))) == 51 / 61
    assert len(shingles("two words")) == 1
    assert len(shingles(" … ")) == 0


def test_groups():
    texts = [
        changed(BASE),
        "something else",
        changed(BASE, 30),
        changed(BASE, 10, 30, 50),
        "",
        changed(BASE).upper(),
        "",
    ]
    assert groups(texts) == [0, 1, 0, 3, 4, 0, 6]
    assert groups(texts, 0.99) == [0, 1, 2, 3, 4, 0, 6]
    assert groups([]) == []


def test_first_texts_differ_and_the_others_have_a_similar_text_in_their_group():
    draw = random.Random(0)
    families = [[f"f{family}w{n}" for n in range(60)] for family in range(10)]
    texts = [changed(draw.choice(families), *draw.sample(range(60), draw.choice([0, 1, 5]))) for _ in range(200)]
    sets, found = [shingles(text) for text in texts], groups(texts)
    firsts = sorted(set(found))
    assert all(jaccard(sets[one], sets[other]) < 0.8 for other in firsts for one in firsts if one < other)
    for text, first in enumerate(found):
        others = [other for other in range(200) if found[other] == first and other != text]
        assert text == first or any(jaccard(sets[text], sets[other]) >= 0.8 for other in others)
    assert 10 < len(firsts) < 150


def test_groups_of_a_store_are_cached_and_rebuilt_if_damaged(tmp_path):
    store = word_store(tmp_path, [changed(BASE), "one two three", changed(BASE, 59)], passage=30)
    found = find_groups(store, "passage", 0.8)
    assert found.tolist() == [0, 1, 2, 0, 1]
    assert find_groups(store, "document", 0.8).tolist() == [0, 1, 0]
    for file in store.cache_folder("near_copies").glob("*/groups.npy"):
        file.write_bytes(b"damaged")
    np.testing.assert_array_equal(find_groups(store, "passage", 0.8), found)


def test_near_copies_of_documents(tmp_path):
    """Documents 0 and 2 share their first passage of 30 words. Document 3 is a near copy of no other."""
    texts = [" ".join(BASE), "one two three", " ".join(BASE[:30]) + " x" * 30, " ".join(f"z{n}" for n in range(30))]
    store = word_store(tmp_path, texts, passage=30)
    assert store.passage_documents.tolist() == [0, 0, 1, 2, 2, 3]
    copies = NearCopies(store, 0.8)
    assert copies.group_N.tolist() == [0, 1, 2, 0, 4, 5]
    documents = np.array([2, 1, 0])
    expected = [[True, False, False], [False, False, False], [True, False, False]]
    assert copies.of_documents(documents, np.array([0, 1, 5])).tolist() == expected
    between = [[True, False, True], [False, True, False], [True, False, True]]
    assert copies.between(documents, documents).tolist() == between
