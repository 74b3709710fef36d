"""Training sequences of the scratch scorer: passages that help to predict the window, followed by the window.

A language model trained on plain text hardly uses a passage before the context. Here some passages contain a verbatim
span of the window, so the model learns to copy. Some are BM25 neighbours, which sometimes help. The others are random,
or there is no passage.

Shapes: B sequences of a step, K passages of a sequence, T tokens of a sequence, L tokens of a passage.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from dream.indexes.bm25 import BM25Index
from dream.scorers.prompt import Prompt
from dream.store.permutation import permute, random_bits
from dream.store.store import SCORER, Store
from dream.utils.errors import require

SHARES = {
    "verbatim": 0.5,  # a random passage that contains a span of the window: teaches copying
    "neighbour": 0.3,  # the best BM25 match from another document
    "random": 0.15,
    "null": 0.05,  # no passage
}
KINDS = tuple(SHARES)
SPAN_TOKENS = (8, 60)  # shortest and longest span that is copied into a passage


class CopyCurriculum(IterableDataset):
    """Infinite batches ids_BT of token ids, beginning with sequence number `start` (an attribute, initially 0).

    The n-th sequence depends only on n and the seed, so a resumed training has the same sequences as an uninterrupted
    one.

    Sequences are not padded. If context or passage are short, text of the corpus fills the sequence: the passage
    continues with the text that follows it. A sequence without a passage begins with the text before the window. So a
    window always has the last `window_tokens` tokens, or slightly fewer.

    In the last 2 · `multi_passage_fraction` of the steps, every second step has multi-passage sequences, with a copied
    span in at most one passage. Such a step has fewer sequences, so its number of tokens is not higher. These steps
    come last because they contain few windows: a model that can copy from one passage soon learns it for several.

    Args:
        store: passages and windows.
        index: finds neighbours.
        prompt: joins passages and window.
        passage_tokens: length of a passage in a sequence.
        shares: share of the sequences with each of `KINDS` of passages; they sum to 1.
        span_tokens: shortest and longest span that is copied into a passage, in tokens.
        multi_passage_fraction: share of the steps with multi-passage sequences, 0 to 0.5.
        passages: number of passages of a multi-passage sequence.
        steps: length of the training.
        batch_size: sequences of a step with one passage each.
        seed: seed of the order of windows, the passages and the spans.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(
        self,
        store: Store,
        index: BM25Index,
        prompt: Prompt,
        passage_tokens: int,
        shares: Mapping[str, float],
        span_tokens: Sequence[int],
        multi_passage_fraction: float,
        passages: int,
        steps: int,
        batch_size: int,
        seed: int,
    ) -> None:
        key = "scorer.training"
        kinds = set(shares) == set(KINDS)
        require(kinds, f"{key}.shares", dict(shares), f"give a share for each of {', '.join(KINDS)}")
        adds_up = min(shares.values()) >= 0 and abs(sum(shares.values()) - 1) < 1e-6
        require(adds_up, f"{key}.shares", dict(shares), "shares are not negative and add up to 1")
        ordered = len(span_tokens) == 2 and 0 < span_tokens[0] <= span_tokens[1]
        require(ordered, f"{key}.span_tokens", list(span_tokens), "give the shortest and the longest span")
        require(batch_size > 0, f"{key}.batch_size", batch_size, "at least 1 sequence")
        share = multi_passage_fraction
        require(0 <= share <= 0.5, f"{key}.multi_passage_fraction", share, "from 0 to 0.5")
        self.multi_passage_from, self.passages = round((1 - 2 * share) * steps), passages
        self.store, self.index, self.prompt, self.seed = store, index, prompt, seed
        self.bounds = np.cumsum([shares[kind] for kind in KINDS[:-1]])
        self.span_tokens, self.batch_size = span_tokens, batch_size
        _, context, _, target = store.manifest["lengths"]
        self.window_tokens = context + target
        self.passage_tokens, self.body_tokens = passage_tokens, passage_tokens + self.window_tokens
        self.length = prompt.overhead() + self.body_tokens
        long = prompt.overhead(passages) + passages * passage_tokens + self.window_tokens
        self.multi_passage_sequences = max(1, batch_size * self.length // long)
        self.start = 0

    def __iter__(self) -> Iterator[Tensor]:
        position = self.start
        while True:
            yield self.batch(position)
            position += self.batch_size

    def batch(self, position: int) -> Tensor:
        """ids_BT of the step whose first sequence has number `position`."""
        step = position // self.batch_size
        if step >= self.multi_passage_from and step % 2:
            return self._multi_passage_batch(np.arange(position, position + self.multi_passage_sequences))
        positions_B = np.arange(position, position + self.batch_size)
        windows_B = permute(self.seed, positions_B, len(self.store.windows))
        kinds_B = np.searchsorted(self.bounds, uniform(self.seed, 0, positions_B), side="right")
        passages_B = random_passages(self.store, windows_B, uniform(self.seed, 1, positions_B))
        near = np.flatnonzero(kinds_B == KINDS.index("neighbour"))
        passages_B[near] = neighbour_passages(self.store, self.index, windows_B[near], 1, passages_B[near])[:, 0]
        draws_B3 = np.stack([uniform(self.seed, number, positions_B) for number in (2, 3, 4)], axis=1)
        sequences = map(self._sequence, kinds_B, windows_B, passages_B, draws_B3)
        return torch.from_numpy(np.stack(list(sequences)))

    def _sequence(self, kind: int, window_id: int, passage_id: int, draws: np.ndarray) -> np.ndarray:
        start, _, end = self.store.windows["tokens"][window_id, SCORER]
        window = self._stream(start, end - start)
        if KINDS[kind] == "null":
            window = self._stream(end - self.body_tokens, self.body_tokens)
        passage = self._stream(self.store.passages["tokens"][passage_id, SCORER, 0], self.body_tokens - len(window))
        if KINDS[kind] == "verbatim":
            passage = plant(passage, window, self.span_tokens, draws)
        return self.prompt.join(passage, window)

    def _multi_passage_batch(self, positions_B: np.ndarray) -> Tensor:
        """ids_BT of multi-passage sequences. Passages are BM25 neighbours of the window, or random.

        For the kind `verbatim`, one of the random passages contains the span. For `null`, all passages are random.
        """
        windows_B = permute(self.seed, positions_B, len(self.store.windows))
        kinds_B = np.searchsorted(self.bounds, uniform(self.seed, 0, positions_B), side="right")
        draws = [uniform(self.seed, 6 + slot, positions_B) for slot in range(self.passages)]
        passages_BK = np.stack([random_passages(self.store, windows_B, draw_B) for draw_B in draws], axis=1)
        near = np.flatnonzero(kinds_B == KINDS.index("neighbour"))
        found = neighbour_passages(self.store, self.index, windows_B[near], self.passages, passages_BK[near, 0])
        # Neighbours are shuffled, so the best one can be at any position.
        passages_BK[near] = np.take_along_axis(found, np.stack(draws, axis=1)[near].argsort(1), axis=1)
        spans_B3 = np.stack([uniform(self.seed, number, positions_B) for number in (2, 3, 4)], axis=1)
        slots_B = (uniform(self.seed, 1, positions_B) * self.passages).astype(np.int64)
        sequences = map(self._multi_passage_sequence, kinds_B, windows_B, passages_BK, slots_B, spans_B3)
        return torch.from_numpy(np.stack(list(sequences)))

    def _multi_passage_sequence(
        self, kind: int, window_id: int, passages_K: np.ndarray, slot: int, draws: np.ndarray
    ) -> np.ndarray:
        start, _, end = self.store.windows["tokens"][window_id, SCORER]
        window = self._stream(start, end - start)
        starts_K = self.store.passages["tokens"][passages_K, SCORER, 0]
        texts = [self._stream(start, self.passage_tokens) for start in starts_K]
        if KINDS[kind] == "verbatim":
            texts[slot] = plant(texts[slot], window, self.span_tokens, draws)
        missing = self.window_tokens - len(window)  # if the window is short, the last passage is made longer
        texts[-1] = np.concatenate([texts[-1], self._stream(starts_K[-1] + self.passage_tokens, missing)])
        return self.prompt.join_passages(texts, window)

    def _stream(self, start: int, count: int) -> np.ndarray:
        """Consecutive tokens of the corpus. After its last token, the first one follows."""
        tokens = self.store.tokens[SCORER]
        return np.asarray(tokens[np.arange(start, start + count) % len(tokens)], dtype=np.int64)


def uniform(seed: int, number: int, positions_B: np.ndarray) -> np.ndarray:
    """A random number in [0, 1) for each position: draw `number` of the seed."""
    return (random_bits(seed, number, positions_B) >> np.uint64(11)) * 2.0**-53


def plant(passage_L: np.ndarray, window: np.ndarray, span_tokens: Sequence[int], draws: np.ndarray) -> np.ndarray:
    """A copy of the passage in which a span of the window replaces a part of equal length.

    Args:
        passage_L: token ids.
        window: token ids.
        span_tokens: shortest and longest span.
        draws: three numbers in [0, 1), for the length of the span, its position in the window, and in the passage.
    """
    shortest, longest = (min(tokens, len(window), len(passage_L)) for tokens in span_tokens)
    span = shortest + int(draws[0] * (longest - shortest + 1))
    begin = int(draws[1] * (len(window) - span + 1))
    place = int(draws[2] * (len(passage_L) - span + 1))
    planted_L = passage_L.copy()
    planted_L[place : place + span] = window[begin : begin + span]
    return planted_L


def random_passages(store: Store, windows_B: np.ndarray, draws_B: np.ndarray) -> np.ndarray:
    """ids_B: for each window a uniformly random passage of another document. `draws_B` is in [0, 1)."""
    first_B, end_B = store.passages_of(store.window_rows(windows_B)["document"])
    owned_B = end_B - first_B
    ids_B = (draws_B * (len(store.passages) - owned_B)).astype(np.int64)
    return ids_B + np.where(ids_B >= first_B, owned_B, 0)


def neighbour_passages(
    store: Store, index: BM25Index, windows_B: np.ndarray, count: int, otherwise_B: np.ndarray
) -> np.ndarray:
    """(B, count): the passages of other documents that BM25 finds for context and target, best first.

    If it finds fewer, the passage in `otherwise_B` is repeated.
    """
    first_B, end_B = store.passages_of(store.window_rows(windows_B)["document"])
    texts = ["".join(store.window_text(int(window))) for window in windows_B]
    found_BM = index.search(texts, count + int((end_B - first_B).max(initial=0)))[1]
    usable_BM = (found_BM >= 0) & ((found_BM < first_B[:, None]) | (found_BM >= end_B[:, None]))
    result = np.repeat(otherwise_B[:, None], count, axis=1)
    for b in range(len(windows_B)):
        kept = found_BM[b, usable_BM[b]][:count]
        result[b, : len(kept)] = kept
    return result
