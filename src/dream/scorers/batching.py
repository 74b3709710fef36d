"""Pads (window, passages) pairs, and groups them into forwards with a bounded number of tokens.

Shapes: P pairs, T tokens, R rows whose logits are kept, M passages in a prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOKENS_PER_FORWARD = {"cpu": 4096, "cuda": 16384}  # a CPU is fastest if the activations fit into its caches
LARGE_GPU, ON_A_LARGE_GPU = 60 << 30, 65536  # bytes of memory, tokens; on an H200 faster than 16384
NO_TARGET = -100
PAD_TO = 16  # tokens: a pair is padded to the next multiple, independently of the other pairs


def tokens_per_forward(device: torch.device) -> int:
    """The number of tokens of a forward, with padding, if `scorer.scoring.tokens_per_forward` is auto."""
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory > LARGE_GPU:
        return ON_A_LARGE_GPU
    return TOKENS_PER_FORWARD.get(device.type, TOKENS_PER_FORWARD["cpu"])


@dataclass
class PaddedPairs:
    """The pairs of one forward.

    Args:
        ids_PT: token ids, padded on the right with 0.
        rows_R: rows of the logits that predict a target token of any pair.
        labels_PR: the token that each of these rows predicts, or `NO_TARGET` if it is not a target token of the pair.
    """

    ids_PT: Tensor
    rows_R: Tensor
    labels_PR: Tensor

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The three tensors on the device."""
        return self.ids_PT.to(device), self.rows_R.to(device), self.labels_PR.to(device)


class PairBatching:
    """Pads and groups pairs. A pair's log-likelihood depends as little as possible on the other pairs.

    The padded length of a pair and the rows of its logits that are kept depend only on its own length. So the matrix
    products of a pair have the same shape in every batch, except for the number of pairs.

    Args:
        most_tokens: number of positions of the model, the maximum length after padding.
        longest_target: tokens of the longest target of the store.

    Example:
        >>> batching = PairBatching(most_tokens=128, longest_target=8)
        >>> [pairs.tolist() for pairs in batching.forwards(np.array([20, 40, 30]), token_budget=64)]
        [[0, 2], [1]]
    """

    def __init__(self, most_tokens: int, longest_target: int) -> None:
        self.most_tokens, self.longest_target = most_tokens, longest_target

    def forwards(self, lengths_P: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
        """Yield the numbers of the pairs of each forward. They have one padded length and fit the token budget."""
        padded_P = self.padded(lengths_P)
        for length in np.unique(padded_P):
            pairs = np.flatnonzero(padded_P == length)
            rows = max(1, token_budget // int(length))
            for start in range(0, len(pairs), rows):
                yield pairs[start : start + rows]

    def padded(self, lengths_P: np.ndarray) -> np.ndarray:
        """Lengths after padding, in tokens."""
        return np.minimum(-(-lengths_P // PAD_TO) * PAD_TO, self.most_tokens)

    def pad(self, sequences: Sequence[np.ndarray], targets: Sequence[int]) -> PaddedPairs:
        """Pad the pairs of one forward.

        The number of rows R depends only on T, because matrix products of another size could sum in another order.

        Args:
            sequences: token ids of each pair; the target is at the end.
            targets: number of target tokens of each pair.
        """
        ends_P = np.array([len(sequence) for sequence in sequences])
        starts_P = ends_P - np.array(targets)
        ids_PT = np.zeros((len(sequences), self.padded(ends_P).max()), dtype=np.int64)
        for row, sequence in zip(ids_PT, sequences, strict=True):
            row[: len(sequence)] = sequence
        columns_R = np.arange(max(1, ids_PT.shape[1] - PAD_TO + 1 - self.longest_target), ids_PT.shape[1])
        is_target_PR = (columns_R >= starts_P[:, None]) & (columns_R < ends_P[:, None])
        labels_PR = np.where(is_target_PR, ids_PT[:, columns_R], NO_TARGET)
        return PaddedPairs(torch.from_numpy(ids_PT), torch.from_numpy(columns_R - 1), torch.from_numpy(labels_PR))


def left_aligned(scored_PR: Tensor, labels_PR: Tensor, tokens: int) -> Tensor:
    """(P, tokens): the values of each pair's target rows, moved to the first columns, then zeros."""
    is_target_PR = (labels_PR != NO_TARGET).to(scored_PR.device)
    first_P1 = is_target_PR.int().argmax(1, keepdim=True)
    columns_PT = first_P1 + torch.arange(tokens, device=scored_PR.device)
    inside_PT = columns_PT < first_P1 + is_target_PR.sum(1, keepdim=True)
    return scored_PR.gather(1, columns_PT.clamp(max=scored_PR.shape[1] - 1)) * inside_PT
