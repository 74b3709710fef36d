"""Measures whether the scorer uses its passages: the gain of helpful passages over random ones.

Shapes: B windows, K candidates of a window.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dream.indexes.bm25 import BM25Index
from dream.scorers.base import CausalScorer
from dream.scorers.pretraining.curriculum import neighbour_passages, random_passages, uniform
from dream.store.permutation import permute
from dream.store.store import Store
from dream.utils.runtime import progress

NEIGHBOURS, RANDOM = 10, 2
WINDOWS_PER_STEP = 16


@dataclass
class Gain:
    """Gains over random passages of other documents: differences of mean log-likelihoods, nats per target token.

    Args:
        best_of_neighbours: gain of the best of 10 BM25 neighbours, the one with the highest log-likelihood.
        first_neighbour: gain of the first BM25 neighbour.
        null: gain without a passage.
        random_loglik: the mean log-likelihood with random passages, nats per target token.
    """

    best_of_neighbours: float
    first_neighbour: float
    null: float
    random_loglik: float


def held_out_windows(store: Store, windows: int, seed: int) -> np.ndarray:
    """The last windows of the seed's first epoch. A training of less than one epoch does not use them."""
    count = len(store.windows)
    return permute(seed, np.arange(max(0, count - windows), count), count)


def measure_gain(scorer: CausalScorer, store: Store, index: BM25Index, windows: int, seed: int) -> Gain:
    """Measure the gain on this number of held-out windows."""
    window_ids = held_out_windows(store, windows, seed)
    rows = []
    bar = progress(total=len(window_ids), unit="window", desc="measuring the gain")
    for start in range(0, len(window_ids), WINDOWS_PER_STEP):
        chosen_B = window_ids[start : start + WINDOWS_PER_STEP]
        draws = [uniform(seed, number, chosen_B) for number in range(RANDOM)]
        random_BK = np.stack([random_passages(store, chosen_B, draw_B) for draw_B in draws], axis=1)
        neighbours_BK = neighbour_passages(store, index, chosen_B, NEIGHBOURS, random_BK[:, 0])
        null_B1 = np.full((len(chosen_B), 1), -1)
        candidates = torch.from_numpy(np.concatenate([neighbours_BK, random_BK, null_B1], axis=1))
        loglik_BK = scorer.loglik(store, torch.from_numpy(chosen_B), candidates).cpu().double().numpy()
        rows.append(loglik_BK / store.scored_counts(chosen_B)[:, None])
        bar.update(len(chosen_B))
    bar.close()
    per_token_BK = np.concatenate(rows)
    neighbours_BK, random_BK = per_token_BK[:, :NEIGHBOURS], per_token_BK[:, NEIGHBOURS:-1]
    level = random_BK.mean()
    return Gain(
        best_of_neighbours=float(neighbours_BK.max(1).mean() - level),
        first_neighbour=float(neighbours_BK[:, 0].mean() - level),
        null=float(per_token_BK[:, -1].mean() - level),
        random_loglik=float(level),
    )
