"""What the scratch scorer is trained on: windows behind passages that are worth reading.

A language model trained on text alone hardly uses a passage before the context. Here some passages contain a span of
the window verbatim, so copying pays and is learnt; some are BM25 neighbours, where it pays now and then; the others
are random, or there is none.

Shapes: B sequences of a step, T tokens of a sequence, L tokens of a passage.
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
    "verbatim": 0.5,  # a random passage with a span of the window in it: teaches copying
    "neighbour": 0.3,  # the best BM25 match from another document
    "random": 0.15,
    "null": 0.05,  # no passage
}
KINDS = tuple(SHARES)
SPAN_TOKENS = (8, 60)  # shortest and longest span that is copied into a passage


class CopyCurriculum(IterableDataset):
    """Endless batches ids_BT from the `start`-th sequence on; the n-th sequence depends on the seed and n alone.

    A sequence has no padding: where context or passage are short, the passage goes on into the text that follows it in
    the corpus, and the null passage's place is filled by the text before the window. So the window's tokens are always
    the last `window_tokens`, or a few less. `shares` gives the share of each of KINDS, `span_tokens` the shortest and
    the longest span that is copied into a passage.

    A `multi_passage_fraction` of the `steps`, every second one at the end, has sequences of several passages, at most one of
    them planted: fewer sequences, so that a step has no more tokens than the others. They come last because they have
    few windows to learn from: a model that has learnt to copy from one passage soon does from several.
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
        """ids_BT of the sequences from `position` on."""
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
        """ids_BT of sequences with several passages: BM25 neighbours of the window, or random ones.

        Before a verbatim one's window, one of the random passages holds the span. There is no null passage here.
        """
        windows_B = permute(self.seed, positions_B, len(self.store.windows))
        kinds_B = np.searchsorted(self.bounds, uniform(self.seed, 0, positions_B), side="right")
        draws = [uniform(self.seed, 6 + slot, positions_B) for slot in range(self.passages)]
        passages_BK = np.stack([random_passages(self.store, windows_B, draw_B) for draw_B in draws], axis=1)
        near = np.flatnonzero(kinds_B == KINDS.index("neighbour"))
        found = neighbour_passages(self.store, self.index, windows_B[near], self.passages, passages_BK[near, 0])
        # The best neighbour may stand anywhere among the others.
        passages_BK[near] = np.take_along_axis(found, np.stack(draws, axis=1)[near].argsort(1), axis=1)
        spans_B3 = np.stack([uniform(self.seed, number, positions_B) for number in (2, 3, 4)], axis=1)
        slots_B = (uniform(self.seed, 1, positions_B) * self.passages).astype(np.int64)
        rows = []
        for kind, window_id, passages, spans, slot in zip(
            kinds_B, windows_B, passages_BK, spans_B3, slots_B, strict=True
        ):
            start, _, end = self.store.windows["tokens"][window_id, SCORER]
            window = self._stream(start, end - start)
            texts = [
                self._stream(self.store.passages["tokens"][row, SCORER, 0], self.passage_tokens) for row in passages
            ]
            if KINDS[kind] == "verbatim":
                texts[slot] = plant(texts[slot], window, self.span_tokens, spans)
            short = self.window_tokens - len(window)  # filled by the text that follows the last passage
            last = self.store.passages["tokens"][passages[-1], SCORER, 0] + self.passage_tokens
            texts[-1] = np.concatenate([texts[-1], self._stream(last, short)])
            rows.append(self.prompt.join_passages(texts, window))
        return torch.from_numpy(np.stack(rows))

    def _stream(self, start: int, count: int) -> np.ndarray:
        """Consecutive tokens of the corpus, which begins anew where it ends."""
        tokens = self.store.tokens[SCORER]
        return np.asarray(tokens[np.arange(start, start + count) % len(tokens)], dtype=np.int64)


def uniform(seed: int, number: int, positions_B: np.ndarray) -> np.ndarray:
    """The `number`-th draw in [0, 1) of each position."""
    return (random_bits(seed, number, positions_B) >> np.uint64(11)) * 2.0**-53


def plant(passage_L: np.ndarray, window: np.ndarray, span_tokens: Sequence[int], draws: np.ndarray) -> np.ndarray:
    """The passage, a part of it replaced by a span of the window.

    `draws`, each in [0, 1): the length of the span, its place in the window, its place in the passage.
    """
    shortest, longest = (min(tokens, len(window), len(passage_L)) for tokens in span_tokens)
    span = shortest + int(draws[0] * (longest - shortest + 1))
    begin = int(draws[1] * (len(window) - span + 1))
    place = int(draws[2] * (len(passage_L) - span + 1))
    planted_L = passage_L.copy()
    planted_L[place : place + span] = window[begin : begin + span]
    return planted_L


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
    first_B, end_B = (np.searchsorted(store.passage_documents, documents_B, side=side) for side in ("left", "right"))
    return first_B, end_B
