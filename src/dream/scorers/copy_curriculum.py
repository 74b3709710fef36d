"""What the scratch scorer is trained on: windows behind passages that are worth reading.

A language model trained on text alone hardly uses a passage before the context. Here some passages contain a span of
the window verbatim, so copying pays and is learnt; some are BM25 neighbours, where it pays now and then; the others
are random, or there is none.

Shapes: B sequences of a step, T tokens, P random numbers per sequence.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from dream.candidates.bm25 import BM25Index
from dream.errors import require
from dream.scorers.base import NO_TARGET, Scoring, longest_sequence
from dream.scorers.prompt import Prompt
from dream.store.permutation import permute, random_bits
from dream.store.store import SCORER, Store

KINDS = ("verbatim", "neighbour", "random", "null")


class CopyCurriculum(IterableDataset):
    """Endless batches (ids_BT, labels_BT) from the `start`-th sequence on; the n-th depends on the seed and n alone.

    Every batch has the same shape, padded on the right. `shares` gives the share of each of KINDS, `span_tokens` the
    shortest and longest span that is copied into a passage.
    """

    def __init__(
        self,
        store: Store,
        index: BM25Index,
        prompt: Prompt,
        scoring: Scoring,
        shares: Mapping[str, float],
        span_tokens: Sequence[int],
        batch_size: int,
        seed: int,
    ) -> None:
        key = "scorer.training"
        require(
            set(shares) == set(KINDS), f"{key}.shares", dict(shares), f"give a share for each of {', '.join(KINDS)}"
        )
        valid = min(shares.values()) >= 0 and abs(sum(shares.values()) - 1) < 1e-6
        require(valid, f"{key}.shares", dict(shares), "shares are not negative and add up to 1")
        require(
            len(span_tokens) == 2 and 0 < span_tokens[0] <= span_tokens[1],
            f"{key}.span_tokens",
            list(span_tokens),
            "shortest and longest span",
        )
        require(batch_size > 0, f"{key}.batch_size", batch_size, "at least 1 sequence")
        self.store, self.index, self.prompt = store, index, prompt
        self.passage_tokens = scoring.max_passage_tokens
        self.length = longest_sequence(prompt, scoring, store)
        self.bounds = np.cumsum([shares[kind] for kind in KINDS[:-1]])
        self.span_tokens, self.batch_size, self.seed = span_tokens, batch_size, seed
        self.start = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        position = self.start
        while True:
            yield self.batch(position)
            position += self.batch_size

    def batch(self, position: int) -> tuple[Tensor, Tensor]:
        """(ids_BT, labels_BT): labels are the ids, NO_TARGET where there is padding."""
        positions_B = np.arange(position, position + self.batch_size)
        windows_B = permute(self.seed, positions_B, len(self.store.windows))
        draws_BP = np.stack([uniform(self.seed, number, positions_B) for number in range(5)], axis=1)
        kinds_B = np.searchsorted(self.bounds, draws_BP[:, 0], side="right")
        passages_B = random_passages(self.store, windows_B, draws_BP[:, 1])
        neighbours = np.flatnonzero(kinds_B == KINDS.index("neighbour"))
        passages_B[neighbours] = neighbour_passages(
            self.store, self.index, windows_B[neighbours], 1, passages_B[neighbours]
        )[:, 0]
        ids_BT = np.zeros((self.batch_size, self.length), dtype=np.int64)
        labels_BT = np.full_like(ids_BT, NO_TARGET)
        for b in range(self.batch_size):
            sequence = self._sequence(KINDS[kinds_B[b]], windows_B[b], passages_B[b], draws_BP[b, 2:])
            ids_BT[b, : len(sequence)] = labels_BT[b, : len(sequence)] = sequence
        return torch.from_numpy(ids_BT), torch.from_numpy(labels_BT)

    def _sequence(self, kind: str, window: int, passage_id: int, draws: np.ndarray) -> np.ndarray:
        context, target = self.store.window_tokens(window, SCORER)
        passage = self.store.passage_tokens(passage_id, SCORER)[: self.passage_tokens]
        if kind == "null":
            passage = passage[:0]
        if kind == "verbatim":
            passage = plant(passage, np.concatenate([context, target]), self.span_tokens, self.passage_tokens, draws)
        return self.prompt.join(passage, context, target)


def uniform(seed: int, number: int, positions_B: np.ndarray) -> np.ndarray:
    """The `number`-th draw in [0, 1) of each position."""
    return (random_bits(seed, number, positions_B) >> np.uint64(11)) * 2.0**-53


def plant(
    passage: np.ndarray, window: np.ndarray, span_tokens: Sequence[int], longest: int, draws: np.ndarray
) -> np.ndarray:
    """The passage, a part of it replaced by a span of the window.

    `draws`, each in [0, 1): the length of the span, its place in the window, its place in the passage.
    """
    shortest, most = (min(tokens, len(window), longest) for tokens in span_tokens)
    span = shortest + int(draws[0] * (most - shortest + 1))
    begin = int(draws[1] * (len(window) - span + 1))
    at = int(draws[2] * (max(0, len(passage) - span) + 1))
    return np.concatenate([passage[:at], window[begin : begin + span], passage[at + span :]])


def random_passages(store: Store, windows_B: np.ndarray, draws_B: np.ndarray) -> np.ndarray:
    """A passage of another document for each window; `draws_B` in [0, 1)."""
    first_B, end_B = own_passages(store, windows_B)
    owned_B = end_B - first_B
    ids_B = (draws_B * (len(store.passages) - owned_B)).astype(np.int64)
    return ids_B + np.where(ids_B >= first_B, owned_B, 0)


def neighbour_passages(
    store: Store, index: BM25Index, windows_B: np.ndarray, count: int, otherwise_B: np.ndarray
) -> np.ndarray:
    """(B, count) passages of other documents that BM25 finds for context and target; `otherwise_B` where too few."""
    first_B, end_B = own_passages(store, windows_B)
    texts = ["".join(store.window_text(int(window))) for window in windows_B]
    found_BM = index.search(texts, count + int((end_B - first_B).max(initial=0)))[1]
    usable_BM = (found_BM >= 0) & ((found_BM < first_B[:, None]) | (found_BM >= end_B[:, None]))
    result = np.repeat(otherwise_B[:, None], count, axis=1)
    for b in range(len(windows_B)):
        kept = found_BM[b, usable_BM[b]][:count]
        result[b, : len(kept)] = kept
    return result


def own_passages(store: Store, windows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first_B, end_B): the passages of each window's own document."""
    documents_B = store.windows["document"][windows_B]
    edges = [np.searchsorted(store.passage_documents, documents_B, side=side) for side in ("left", "right")]
    return edges[0], edges[1]
