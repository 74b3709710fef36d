"""Where a document is cut: passages for the index, windows (context, target) for training.

All cuts are token positions of one tokenizer, moved back to the nearest word boundary, and then carried over to the
other tokenizer through character offsets. A document is therefore tokenised once per tokenizer, as a whole.
"""

import numpy as np

SPACE = np.array([chr(code).isspace() for code in range(0x3001)])  # every Unicode space is at or below U+3000


def word_starts(text: str, starts_T: np.ndarray) -> np.ndarray:
    """For each token, whether a word begins there. `starts_T`: character offset of each token's beginning."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    is_space = SPACE[np.minimum(codes, len(SPACE) - 2)]
    before = np.maximum(starts_T - 1, 0)
    here = np.minimum(starts_T, len(codes) - 1)
    return (starts_T == 0) | is_space[before] | is_space[here]


def _back_to_word(position: int, lowest: int, boundary_T: np.ndarray) -> int:
    """The last word boundary at or before `position` and above `lowest`, else `position` itself."""
    candidates = np.flatnonzero(boundary_T[lowest + 1 : position + 1])
    return lowest + 1 + int(candidates[-1]) if len(candidates) else position


def cut_passages(tokens: int, boundary_T: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Consecutive token ranges that cover the document, each at most `longest`, of about equal length."""
    ranges = []
    start = 0
    while start < tokens:
        left = tokens - start
        pieces = -(-left // longest)
        end = start + -(-left // pieces)
        if end < tokens:
            end = _back_to_word(end, start + (end - start) // 2, boundary_T)
        ranges.append((start, end))
        start = end
    return ranges


def cut_windows(
    tokens: int, boundary_T: np.ndarray, context: int, min_context: int, target: int
) -> list[tuple[int, int, int]]:
    """Consecutive (start, middle, end): context is [start, middle), target is [middle, end), `target` tokens long.

    The last window of a document may have a context as short as `min_context`; what is left after it has no window.
    """
    windows = []
    start = 0
    while tokens - start >= min_context + target:
        middle = min(start + context, tokens - target)
        middle = _back_to_word(middle, start + min_context - 1, boundary_T)
        windows.append((start, middle, middle + target))
        start = middle + target
    return windows


def carry_over(cuts: np.ndarray, from_starts_T: np.ndarray, to_starts_T: np.ndarray) -> np.ndarray:
    """Translate token positions of one tokenizer to another, through the characters where the tokens begin."""
    edges = np.append(from_starts_T, np.iinfo(np.int64).max)
    return np.searchsorted(to_starts_T, edges[cuts], side="left")
