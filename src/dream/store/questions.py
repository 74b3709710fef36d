"""Questions that a language model has written about passages. They are windows that are not pieces of documents."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dream.store.tokens import BatchTokenizer
from dream.utils.atomic_io import checksum, fingerprint

TEXTS, TOKENS = "questions.jsonl", "tokens.npz"
HELD_OUT = 6  # one question of six is not trained on: they choose the weight of the hybrid with BM25


class Questions:
    """Read-only view of a folder of questions.

    Args:
        path: the folder. The order of its questions is random.

    Attributes:
        hash: hash of the questions and their passages.
        texts: the questions to train on.
        passages_Q: the passage that each of them was written about.
        held_out: (question, passage) of those that are not trained on.
    """

    def __init__(self, path: Path) -> None:
        # The name does not tell how they were computed: on another device, the model may have written other questions.
        self.path, self.hash = path, fingerprint(checksum(path / TEXTS))
        texts = [json.loads(line)["question"] for line in (path / TEXTS).read_text("utf-8").splitlines()]
        trained = len(texts) - len(texts) // HELD_OUT
        with np.load(path / TOKENS, allow_pickle=False) as arrays:
            passages_Q = arrays["passages"]
            self.ids = [arrays["encoder_ids"], arrays["scorer_ids"]]
            self.bounds = [arrays["encoder_bounds"], arrays["scorer_bounds"]]

        self.texts, self.passages_Q = texts[:trained], passages_Q[:trained]
        self.held_out = list(zip(texts[trained:], passages_Q[trained:].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.texts)

    def tokens(self, number: int, side: int) -> np.ndarray:
        """Token ids of a question, for the encoder (side 0) or the scorer (side 1)."""
        start, end = self.bounds[side][number : number + 2]
        return self.ids[side][start:end]

    def counts(self, side: int) -> np.ndarray:
        """Number of tokens of each question."""
        return np.diff(self.bounds[side])[: len(self)]


def save_tokens(folder: Path, passages: Sequence[int], texts: list[str], tokenizers: Sequence) -> None:
    """Tokenise the questions with both tokenizers, and write the file of tokens."""
    sides = [BatchTokenizer(tokenizer)(texts) for tokenizer in tokenizers]
    np.savez(folder / TOKENS, passages=np.asarray(passages, dtype=np.int64),
             encoder_ids=sides[0].ids_T, encoder_bounds=sides[0].bounds,
             scorer_ids=sides[1].ids_T, scorer_bounds=sides[1].bounds)  # fmt: skip
