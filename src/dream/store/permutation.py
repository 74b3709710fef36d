"""A seeded pseudo-random order of n windows. Each position is computed, so no list is shuffled or stored."""

import numpy as np

ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea & Flood 2014): each input bit changes about half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def random_bits(seed: int, *counters: np.ndarray | int) -> np.ndarray:
    """Random uint64 that depend only on the seed and the counters. So any draw of a run can be repeated."""
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(seed % 2**64, dtype=np.uint64) + GOLDEN)
        for counter in counters:
            state = _mix(state * GOLDEN + np.asarray(counter).astype(np.uint64) + GOLDEN)
    return state


def permute(seed: int, positions: np.ndarray, n: int) -> np.ndarray:
    """Window ids at these positions of an infinite stream. Each epoch (n positions) is a permutation of range(n).

    A balanced Feistel network permutes the smallest range 4^k that contains n. It is applied again until the value is
    below n (cycle walking; Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        seed: Seed of the order.
        positions: Positions in the stream, from 0; (positions,).
        n: Number of windows.

    Returns:
        Window ids, int64, (positions,).
    """
    positions = np.asarray(positions, dtype=np.int64)
    epochs = positions // n
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    values = (positions % n).astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & low
        for round_ in range(ROUNDS):
            left, right = right, left ^ (random_bits(seed, epochs[outside], round_, right) & low)
        values[outside] = (left << half) | right
        outside = values >= n
    return values.astype(np.int64)
