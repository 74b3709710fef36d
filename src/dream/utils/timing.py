"""Measures how the wall time of a run is spent."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Part of the wall time → (what it is, what to change to make it shorter). `other` is what no part measures.
PARTS = {
    "prepare": ("reading the corpus, opening models", "later runs read the caches in data/"),
    "data": ("waiting for the next windows", "raise data.workers"),
    "encode": ("the encoder's forward passes", "lower data.batch_size or candidates.k"),
    "propose": ("candidates from BM25 and the index", "lower candidates.k or data.batch_size"),
    "score": ("the language model's forward passes", "lower candidates.scored_windows or candidates.k"),
    "backward": ("the loss and its gradients", "lower data.batch_size or candidates.k"),
    "optimizer": ("clipping and updating the weights", "choose an encoder with fewer weights, or LoRA"),
    "refresh": ("embedding the corpus", "raise callbacks.index_refresh.every_n_steps"),
    "evaluate": ("ranking labelled or held-out queries", "raise callbacks.evaluation.every_n_steps"),
    "checkpoint": ("saving checkpoints", "raise callbacks.last_checkpoint.every_n_train_steps"),
    "other": ("logging and other callbacks", "raise trainer.log_every_n_steps"),
}


class Timer:
    """Wall seconds of each part since the timer was created: `with timer("encode"): …`.

    GPU kernels count for the part that waits for them.

    Attributes:
        began: `time.perf_counter()` when the timer was created.
        seconds: part → seconds.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    @property
    def wall(self) -> float:
        """Seconds since the timer was created."""
        return time.perf_counter() - self.began


def fractions(seconds: Mapping[str, float], wall: float) -> dict[str, float]:
    """Share of each part in the wall time, with `other`; the shares sum to 1.

    Args:
        seconds: part → seconds.
        wall: seconds in which the parts were measured.
    """
    shares = {part: seconds.get(part, 0.0) / wall for part in PARTS if part != "other"}
    return shares | {"other": 1 - sum(shares.values())}
