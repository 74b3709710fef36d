"""The prompt of the language model: passage and context in a template, joined as token ids."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from dream.utils.errors import ConfigError, require

KEY = "scorer.scoring.template"
PASSAGE, CONTEXT = "{passage}", "{context}"
MARKERS = {"{bos}": "bos_token_id", "{sep}": "sep_token_id"}


class Prompt:
    """A template whose literal pieces are tokenised once. Ids from the store are joined, never tokenised again.

    The context is the last piece, because the target must follow it. With the null passage, the other pieces are kept.

    Args:
        template: pieces in order: `{passage}` once, `{context}` last, `{bos}`, `{sep}`, and literal text.
        tokenizer: tokenizer of the scorer.

    Raises:
        ConfigError: the template lacks a piece, or the tokenizer has no separator token.

    Example:
        >>> prompt = Prompt(["{bos}", "{passage}", "\\n\\n", "{context}"], tokenizer)
        >>> ids_T = prompt.join(passage_ids, context_ids, target_ids)
    """

    def __init__(self, template: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.template = pieces = list(template)
        require(pieces.count(PASSAGE) == 1, KEY, pieces, f"{PASSAGE} must stand in it once")
        require(pieces.count(CONTEXT) == 1 and pieces[-1] == CONTEXT, KEY, pieces, f"{CONTEXT} must be its last piece")
        literals = [_tokenise(piece, tokenizer) for piece in pieces if piece not in (PASSAGE, CONTEXT)]
        before = pieces.index(PASSAGE)
        self.before_passage = np.array([token for piece in literals[:before] for token in piece], dtype=np.int64)
        self.before_context = np.array([token for piece in literals[before:] for token in piece], dtype=np.int64)

    def overhead(self, passages: int = 1) -> int:
        """Number of tokens that are not part of passages, context or target."""
        return len(self.before_passage) + passages * len(self.before_context)

    def require_start(self, target: str) -> None:
        """Raise ConfigError if the first scored token would have no token before it. `target`: see `store.TARGETS`."""
        starts = target == "continuation" or self.overhead() > 0
        require(starts, KEY, self.template, f"with data.target={target} something must precede the context; write e.g. "
                "'\\n\\n' before {context}")  # fmt: skip

    def join(self, passage: np.ndarray, *window: np.ndarray) -> np.ndarray:
        """Token ids of the whole sequence, int64. The window is one array, or its context and its target."""
        return self.join_passages([passage], *window)

    def join_passages(self, passages: Sequence[np.ndarray], *window: np.ndarray) -> np.ndarray:
        """Like `join`, for several passages. The pieces between passage and context follow each passage."""
        pieces = [self.before_passage]
        for passage in passages:
            pieces += [passage, self.before_context]
        return np.concatenate([*pieces, *window])

    def owners(self, passages: Sequence[np.ndarray], tokens: int) -> np.ndarray:
        """owner_T int64: the passage of each of the first `tokens` tokens of `join_passages`, or -1."""
        owner_T = np.full(tokens, -1, dtype=np.int64)
        start = len(self.before_passage)
        for number, passage in enumerate(passages):
            owner_T[start : start + len(passage)] = number
            start += len(passage) + len(self.before_context)
        return owner_T

    def text(self, passage: np.ndarray) -> np.ndarray:
        """Token ids of the start of a sequence, up to the end of its passage."""
        return np.concatenate([self.before_passage, passage])


def special_ids(template: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the special tokens in a template, without those that the tokenizer lacks."""
    ids = [getattr(tokenizer, MARKERS[piece]) for piece in template if piece in MARKERS]
    return [token_id for token_id in ids if token_id is not None]


def _tokenise(piece: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a literal piece or a marker.

    If the tokenizer lacks the token, {bos} is left out, because the model was trained without it. {sep} is an error.
    """
    if piece not in MARKERS:
        return tokenizer(piece, add_special_tokens=False)["input_ids"]
    token_id = getattr(tokenizer, MARKERS[piece])
    if token_id is None and piece == "{sep}":
        raise ConfigError(
            KEY, piece, "this tokenizer has no separator token; write the text that separates, e.g. '\\n\\n'"
        )
    return [] if token_id is None else [token_id]
