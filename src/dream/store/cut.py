"""Where documents are cut: passages for the index, windows (context, target) for training.

All cuts are token positions of one tokenizer, moved to a word boundary, and then carried over to the other tokenizer
through the characters. A document is therefore tokenised once per tokenizer, as a whole. Everything here works on a
batch of documents laid end to end: characters and tokens count from the batch's first.
"""

from bisect import bisect_left, bisect_right

import numpy as np

from dream.store.tokens import Tokens

SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # every Unicode space is at or below U+3000


def spaces(text: str) -> np.ndarray:
    """For each character, whether it is white space; bool."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return SPACE[np.minimum(codes, len(SPACE) - 1)]


class Boundaries:
    """Where words and characters begin, as token positions.

    A word begins at a document's first token, after white space, and where a token begins with white space. Byte-level
    tokenizers spell rare characters with several tokens; a cut between those would leave text that cannot be decoded.
    """

    def __init__(self, tokens: Tokens, is_space: np.ndarray) -> None:
        starts_T, firsts = tokens.starts_T, tokens.bounds[tokens.bounds < len(tokens.starts_T)]
        opens_T = np.ones(len(starts_T), dtype=bool)
        opens_T[1:] = starts_T[1:] != starts_T[:-1]
        here_T = is_space[np.minimum(starts_T, len(is_space) - 1)]
        word_T = opens_T & (is_space[starts_T - 1] | here_T)
        word_T[firsts] = True
        self.words: list[int] = np.flatnonzero(word_T).tolist()
        self.inside: set[int] = set(np.flatnonzero(~opens_T).tolist())

    def back(self, position: int, lowest: int) -> int:
        """The last word start in [lowest, position], else the last character start there, else `position`."""
        word = self.words[bisect_right(self.words, position) - 1]
        if word >= lowest:
            return word
        return next((p for p in range(position, lowest - 1, -1) if p not in self.inside), position)

    def forward(self, position: int, highest: int) -> int:
        """The first word start in [position, highest], else the first character start there, else `position`."""
        number = bisect_left(self.words, position)
        if number < len(self.words) and self.words[number] <= highest:
            return self.words[number]
        return next((p for p in range(position, highest + 1) if p not in self.inside), position)


def cut_passages(first: int, last: int, boundaries: Boundaries, longest: int) -> list[tuple[int, int]]:
    """Consecutive token ranges that cover [first, last), each at most `longest` long, of about equal length."""
    ranges = []
    start = first
    while start < last:
        left = last - start
        pieces = -(-left // longest)
        end = start + -(-left // pieces)
        if end < last:
            end = boundaries.back(end, start + (end - start) // 2 + 1)
        ranges.append((start, end))
        start = end
    return ranges


def cut_windows(
    first: int, last: int, boundaries: Boundaries, context: int, min_context: int, target: int
) -> list[tuple[int, int, int]]:
    """Disjoint (start, middle, end) in [first, last): context is [start, middle), target is [middle, end).

    A target is exactly `target` tokens long, and a context between `min_context` and `context`. A target may end inside
    a word; the next window then begins after that word. What is left at the end of a document has no window.
    """
    windows = []
    start = first
    while last - start >= min_context + target:
        middle = boundaries.back(min(start + context, last - target), start + min_context)
        end = middle + target
        windows.append((start, middle, end))
        start = boundaries.forward(end, min(end + min_context, last))
    return windows


def carry_over(cuts: np.ndarray, documents: np.ndarray, source: Tokens, goal: Tokens, is_space: np.ndarray) -> np.ndarray:
    """Translate token positions from one tokenizer to another: to the first token that begins at or after the same text.

    `cuts`: (rows, columns), `documents`: (rows,). White space does not count, because tokenizers differ in whether a
    word's token includes the space before it. A document's first and last token stay its first and last.
    """
    solid_before = np.zeros(len(is_space) + 1, dtype=np.int64)
    np.cumsum(~is_space, out=solid_before[1:])
    edges = np.append(solid_before[source.starts_T], solid_before[-1])[cuts]
    carried = np.searchsorted(solid_before[goal.starts_T], edges, side="left")
    first, last = goal.bounds[documents][:, None], goal.bounds[documents + 1][:, None]
    carried = np.where(cuts == source.bounds[documents][:, None], first, np.clip(carried, first, last))
    return np.where(cuts == source.bounds[documents + 1][:, None], last, carried)
