"""Cuts of passages and windows, by hand and as properties. Run: pytest tests/store/test_cut.py"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dream.store.cut import Batch, Boundaries, cut_passages, cut_windows, spaces
from dream.store.store import ENCODER, PASSAGE, SCORER, WINDOW
from dream.store.tokens import Tokens


def character_tokens(*texts: str) -> Tokens:
    """Each character that is not white space is a token."""
    solid = [[place for place, character in enumerate(text) if not character.isspace()] for text in texts]
    bases = np.cumsum([0, *map(len, texts)])
    starts_T = np.array([base + place for base, places in zip(bases, solid, strict=False) for place in places])
    return Tokens(np.zeros(len(starts_T), dtype=np.uint16), starts_T, np.cumsum([0, *map(len, solid)]))


def word_tokens(*texts: str) -> Tokens:
    """Each word is a token that begins with the space before it, as in byte-level tokenizers."""
    starts, counts, base = [], [0], 0
    for text in texts:
        own = [
            place
            for place, character in enumerate(text)
            if (place == 0 and not character.isspace())
            or (character.isspace() and not text[place + 1 : place + 2].isspace() and place + 1 < len(text))
        ]
        starts += [base + place for place in own]
        counts.append(len(own))
        base += len(text)
    return Tokens(np.zeros(len(starts), dtype=np.uint16), np.array(starts), np.cumsum(counts))


TEXT = "abc d efg h ij"  # ten character tokens; words begin at tokens 0, 3, 4, 7, 8


def boundaries(*texts: str) -> Boundaries:
    return Boundaries(character_tokens(*texts), spaces("".join(texts)))


def test_words_begin_after_white_space_and_at_every_document():
    assert boundaries(TEXT).words == [0, 3, 4, 7, 8]
    assert boundaries("ab", "cd").words == [0, 2]
    assert boundaries("a\u3000b\u00a0c\u2029d").words == [0, 1, 2, 3]  # ideographic, no-break, paragraph separator


def test_spaces_knows_every_unicode_space():
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert np.array_equal(spaces(every), [character.isspace() for character in every])


def test_back_and_forward_prefer_words_then_whole_characters():
    tokens = Tokens(np.zeros(6, dtype=np.uint16), np.array([0, 1, 1, 1, 2, 3]), np.array([0, 6]))  # 1 to 3 spell one
    cuts = Boundaries(tokens, spaces("aéb "))
    assert cuts.words == [0, 5]
    assert cuts.inside == {2, 3}
    assert cuts.back(3, 1) == 1  # no word in [1, 3]; token 1 begins the character
    assert cuts.back(3, 2) == 3  # nothing better
    assert cuts.forward(2, 3) == 2
    assert cuts.forward(2, 4) == 4
    assert cuts.forward(2, 5) == 5
    assert cuts.back(5, 0) == 5


def test_passages_by_hand():
    # 10 tokens in pieces of at most 4: three pieces of 4; token 4 begins a word. Six left, two pieces of 3; so does 7.
    assert cut_passages(0, 10, boundaries(TEXT), 4) == [(0, 4), (4, 7), (7, 10)]
    # pieces of at most 6: two of 5; token 5 is inside "efg", 4 is not.  Then 6 tokens are one piece.
    assert cut_passages(0, 10, boundaries(TEXT), 6) == [(0, 4), (4, 10)]
    assert cut_passages(0, 10, boundaries(TEXT), 10) == [(0, 10)]
    assert cut_passages(3, 3, boundaries(TEXT), 10) == []


def test_windows_by_hand():
    # Context up to token 3, where "d" begins; target 3, 4 ends inside "efg"; the next begins with "h": only 3 left.
    assert cut_windows(0, 10, boundaries(TEXT), context=3, min_context=2, target=2) == [(0, 3, 5)]
    # The next word is looked for within min_context tokens: 7 is too far from 5, so that "fg h" is the next context.
    assert cut_windows(0, 10, boundaries(TEXT), context=3, min_context=1, target=2) == [(0, 3, 5), (5, 8, 10)]
    # The last context is shortened so that the target fits: 10 - 6 = 4.
    assert cut_windows(0, 10, boundaries(TEXT), context=8, min_context=2, target=6) == [(0, 4, 10)]
    assert cut_windows(0, 10, boundaries(TEXT), context=8, min_context=8, target=3) == []


def test_carrying_over_ignores_where_the_space_belongs():
    texts = ["ab cd", "ef  gh"]
    characters, words = character_tokens(*texts), word_tokens(*texts)
    assert words.starts_T.tolist() == [0, 2, 5, 8]
    batch = Batch(texts, [characters, words])
    # Characters abcd|efgh: a cut before c is one before " cd"; before d, inside that word, it moves behind the word.
    cuts, documents = np.array([[0, 2, 4], [0, 3, 4], [4, 6, 8]]), np.array([0, 0, 1])
    carried = batch.carry_over(cuts, documents, characters, words)
    assert carried.tolist() == [[0, 1, 2], [0, 2, 2], [2, 3, 4]]
    assert batch.carry_over(carried, documents, words, characters).tolist() == [[0, 2, 4], [0, 4, 4], [4, 6, 8]]


def test_characters_of_passages_span_their_document():
    texts = ["  ab cd ", "ef"]
    tokens = character_tokens(*texts)
    rows = Batch(texts, [tokens, tokens]).table(ENCODER, lambda a, b, cuts: cut_passages(a, b, cuts, 2), PASSAGE)
    assert rows["document"].tolist() == [0, 0, 1]
    assert rows["characters"].tolist() == [[0, 5], [5, 8], [0, 2]]
    assert rows["tokens"][:, SCORER].tolist() == [[0, 2], [2, 4], [4, 6]]


documents = st.lists(st.text(st.sampled_from("ab é\n\u3000😀"), min_size=1, max_size=60).filter(str.strip), min_size=1)


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(1, 9))
def test_passages_cover_each_document_in_order(texts, longest):
    sides = [character_tokens(*texts), word_tokens(*texts)]
    rows = Batch(texts, sides).table(ENCODER, lambda a, b, cuts: cut_passages(a, b, cuts, longest), PASSAGE)
    for number, text in enumerate(texts):
        own = rows[rows["document"] == number]
        assert "".join(text[start:end] for start, end in own["characters"]) == text
        for side, tokens in enumerate(sides):
            edges = [*own["tokens"][:, side, 0], own["tokens"][-1, side, 1]]
            assert edges[0] == tokens.bounds[number]
            assert edges[-1] == tokens.bounds[number + 1]
            assert edges[1:-1] == [*own["tokens"][:-1, side, 1]]
    lengths = np.diff(rows["tokens"][:, ENCODER])
    assert lengths.min() >= 1
    assert lengths.max() <= longest


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(1, 6), st.integers(0, 6), st.integers(1, 6))
def test_windows_are_whole_and_disjoint(texts, min_context, more, target):
    sides = [word_tokens(*texts), character_tokens(*texts)]

    def cut(first, last, cuts):
        return cut_windows(first, last, cuts, min_context + more, min_context, target)

    rows = Batch(texts, sides).table(SCORER, cut, WINDOW)
    native = sides[SCORER]
    starts, middles, ends = rows["tokens"][:, SCORER].T
    assert (starts >= native.bounds[rows["document"]]).all()
    assert (ends <= native.bounds[rows["document"] + 1]).all()
    assert (ends - middles == target).all()
    assert (middles - starts >= min_context).all()
    assert (middles - starts <= min_context + more).all()
    assert (starts[1:] >= ends[:-1]).all()
    has_window = np.isin(np.arange(len(texts)), rows["document"])
    assert (has_window == (np.diff(native.bounds) >= min_context + target)).all()
