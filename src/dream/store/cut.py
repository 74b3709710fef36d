"""Cuts documents into passages for the index and into windows (context, target) for training.

Each cut is a token position of one tokenizer that is moved to a word boundary. Character positions are used to
translate it to the other tokenizer. So each tokenizer reads a document only once, as a whole. The functions work on a
concatenated batch of documents: characters and tokens are counted from the beginning of the batch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from dream.store.tokens import Tokens
from dream.store.words import spaces

SHORTEST_TARGET = 8  # tokens


class Boundaries:
    """Token positions at which words and characters begin.

    A word begins at a document's first token, after white space, and at a token that begins with white space.
    Byte-level tokenizers write rare characters as several tokens. Text that is cut between them cannot be decoded.

    Args:
        tokens: Tokens of the batch.
        is_space: Whether each character of the batch is white space.
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
        """The last word start in [lowest, position], otherwise the last character start, otherwise `position`."""
        word = self.words[bisect_right(self.words, position) - 1]
        if word >= lowest:
            return word
        return next((p for p in range(position, lowest - 1, -1) if p not in self.inside), position)

    def forward(self, position: int, highest: int) -> int:
        """The first word start in [position, highest], otherwise the first character start, otherwise `position`."""
        number = bisect_left(self.words, position)
        if number < len(self.words) and self.words[number] <= highest:
            return self.words[number]
        return next((p for p in range(position, highest + 1) if p not in self.inside), position)


def cut_passages(first: int, last: int, boundaries: Boundaries, longest: int) -> list[tuple[int, int]]:
    """Consecutive token ranges that cover [first, last). They have about equal lengths of at most `longest` tokens."""
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


def cut_leads(first: int, last: int, boundaries: Boundaries, longest: int, count: int) -> list[tuple[int, int]]:
    """The first `count` token ranges of [first, last). Each has `longest` tokens and the rest of its last word.

    For a model that reads `longest` tokens, the first passage is then equal to the whole document.
    """
    ranges: list[tuple[int, int]] = []
    start = first
    while start < last and len(ranges) < count:
        end = boundaries.forward(start + longest, last) if start + longest < last else last
        ranges.append((start, end))
        start = end
    return ranges


def cut_windows(
    first: int, last: int, boundaries: Boundaries, context: int, min_context: int, target: int
) -> list[tuple[int, int, int]]:
    """Disjoint (start, middle, end) in [first, last): context is [start, middle), target is [middle, end).

    A target has exactly `target` tokens. A context has between `min_context` and `context` tokens. A target may end
    inside a word; the next window then begins after that word. If the rest of a document is too short, it is not used.
    """
    windows = []
    start = first
    while last - start >= min_context + target:
        middle = boundaries.back(min(start + context, last - target), start + min_context)
        end = middle + target
        windows.append((start, middle, end))
        start = boundaries.forward(end, min(end + min_context, last))
    return windows


def cut_beginning(
    first: int, last: int, boundaries: Boundaries, context: int, min_context: int, target: int
) -> list[tuple[int, int, int]]:
    """At most one (start, middle, end), as in `cut_windows`: the context is the beginning of [first, last).

    If the document is shorter than context and target, the target is shorter, but not below `shortest_target`.
    """
    most = last - first - shortest_target(target)
    if most < min_context:
        return []
    middle = boundaries.back(first + min(context, most), first + min_context)
    return [(first, middle, min(middle + target, last))]


def shortest_target(target: int) -> int:
    """Tokens of the shortest target of a window whose context is a beginning, a title, a sentence or a heading."""
    return min(target, SHORTEST_TARGET)


class Batch:
    """A concatenated batch of documents.

    Args:
        texts: The documents.
        sides: Their tokens for the encoder and for the scorer. The same object twice if both use the same tokenizer.
    """

    def __init__(self, texts: list[str], sides: list[Tokens]) -> None:
        self.sides = sides
        self.is_space = spaces("".join(texts))
        self.bounds = np.cumsum([0, *map(len, texts)])  # (documents + 1,) first character of each document
        self.solid_before = np.zeros(len(self.is_space) + 1, dtype=np.int64)  # characters that are not white space
        np.cumsum(~self.is_space, out=self.solid_before[1:])

    def table(self, side: int, cut: Callable[[int, int, Boundaries], Sequence[tuple]], dtype: np.dtype) -> np.ndarray:
        """Rows of a store table: cut each document by one side's tokens, and translate the cuts to the other side.

        Documents and tokens are counted from the beginning of the batch, characters from the beginning of the document.
        """
        boundaries = Boundaries(self.sides[side], self.is_space)
        bounds = pairwise(self.sides[side].bounds.tolist())
        return self._rows(side, [cut(first, last, boundaries) for first, last in bounds], dtype)

    def window_table(
        self, side: int, contexts: Sequence[Sequence[tuple[int, int]]], longest: int, min_context: int, target: int,
        dtype: np.dtype,
    ) -> np.ndarray:  # fmt: skip
        """Rows of the window table for contexts that are given as ranges of characters.

        Contexts with less than `min_context` or more than `longest` tokens are left out. A target has `target` tokens.
        At a document's end it can be shorter, but not below `shortest_target`.

        Args:
            contexts: for each document, (first character, end) of its contexts, counted from its beginning.
        """
        tokens = self.sides[side]
        solid_before_T = self.solid_before[tokens.starts_T]
        windows: list[list[tuple[int, int, int]]] = []
        for document, ranges in enumerate(contexts):
            at = self.solid_before[np.array(ranges, dtype=np.int64).reshape(-1, 2) + self.bounds[document]]
            last = int(tokens.bounds[document + 1])
            rows = np.searchsorted(solid_before_T, at, side="left").tolist()
            windows.append([
                (start, middle, min(middle + target, last))
                for start, middle in rows
                if min_context <= middle - start <= longest and last - middle >= shortest_target(target)
            ])  # fmt: skip
        return self._rows(side, windows, dtype)

    def _rows(self, side: int, ranges: Sequence[Sequence[tuple]], dtype: np.dtype) -> np.ndarray:
        """Rows of a store table from the token ranges of each document."""
        native = self.sides[side]
        rows = np.zeros(sum(map(len, ranges)), dtype=dtype)
        if len(rows):
            rows["document"] = np.repeat(np.arange(len(ranges)), [len(cuts) for cuts in ranges])
            cuts = np.array([cut for cuts in ranges for cut in cuts])
            rows["characters"] = self._characters(cuts, rows["document"], native)
            for other, tokens in enumerate(self.sides):
                same = tokens is native
                rows["tokens"][:, other] = cuts if same else self.carry_over(cuts, rows["document"], native, tokens)
        return rows

    def carry_over(self, cuts: np.ndarray, documents: np.ndarray, source: Tokens, goal: Tokens) -> np.ndarray:
        """Translate token positions to another tokenizer: to the first token that begins at or after the same text.

        White space is ignored, because only some tokenizers include the space before a word in its token. The first and
        last position of a document are translated to its first and last position.

        Args:
            cuts: Token positions in `source`, (rows, columns).
            documents: The document of each row, (rows,).
            source: The tokens that were cut.
            goal: The tokens of the other tokenizer.
        """
        edges = np.append(self.solid_before[source.starts_T], self.solid_before[-1])[cuts]
        carried = np.searchsorted(self.solid_before[goal.starts_T], edges, side="left")
        return _pinned(carried, cuts, documents, source.bounds, goal.bounds)

    def _characters(self, cuts: np.ndarray, documents: np.ndarray, source: Tokens) -> np.ndarray:
        """The character in its document where the token of each cut begins. The cuts cover the whole document."""
        starts = np.append(source.starts_T, self.bounds[-1])[cuts]
        return _pinned(starts, cuts, documents, source.bounds, self.bounds) - self.bounds[documents][:, None]


def _pinned(
    places: np.ndarray, cuts: np.ndarray, documents: np.ndarray, source_bounds: np.ndarray, goal_bounds: np.ndarray
) -> np.ndarray:
    """`places`, limited to the bounds of their documents. A cut at an end of a document gets the bound of this end."""
    first, last = goal_bounds[documents][:, None], goal_bounds[documents + 1][:, None]
    inside = np.where(cuts == source_bounds[documents][:, None], first, np.clip(places, first, last))
    return np.where(cuts == source_bounds[documents + 1][:, None], last, inside)
