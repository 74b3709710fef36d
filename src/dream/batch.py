"""Batches of windows and tokens, from the store to the objective.

Shape suffixes, in all files that have no legend of their own: B windows of a step on this rank; A windows of the step
on all ranks, first those of this rank; S windows of B that the LM scores; P windows of B that have candidates; K
candidates of a window; U distinct candidates of the step on all ranks; N passages of the corpus; T tokens (padded); D
embedding width; V vocabulary; Q labelled queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TokenBatch:
    """Token ids, padded at the end.

    Attributes:
        ids_BT: int64.
        mask_BT: bool, true for tokens, false for padding.
    """

    ids_BT: Tensor
    mask_BT: Tensor

    def __len__(self) -> int:
        return len(self.ids_BT)

    def head(self, count: int) -> "TokenBatch":
        return self.rows(slice(count))

    def rows(self, rows: Tensor | slice) -> "TokenBatch":
        return TokenBatch(self.ids_BT[rows], self.mask_BT[rows])

    def to(self, device: torch.device | str) -> "TokenBatch":
        return TokenBatch(self.ids_BT.to(device), self.mask_BT.to(device))


@dataclass
class WindowBatch:
    """B training windows: the windows of a step, or this rank's share of them.

    Attributes:
        consumed: number of windows that the run has used, including this batch. The stream has no other state.
        window_ids_B: rows of the store's window table.
        document_ids_B: rows of the store's document table.
        context: what the encoder embeds as the query.
        continuation: the document's text that starts at the target, for objectives that embed it.
        positions_B: positions of the windows in the run's stream, for random numbers that belong to a window.
    """

    consumed: int
    window_ids_B: Tensor
    document_ids_B: Tensor
    context: TokenBatch
    continuation: TokenBatch
    positions_B: Tensor

    def __len__(self) -> int:
        return len(self.window_ids_B)

    def head(self, count: int) -> "WindowBatch":
        """The first `count` windows of the step."""
        return self.rows(slice(count))

    def rows(self, rows: Tensor | slice) -> "WindowBatch":
        """These windows of the step."""
        return WindowBatch(
            self.consumed,
            self.window_ids_B[rows],
            self.document_ids_B[rows],
            self.context.rows(rows),
            self.continuation.rows(rows),
            self.positions_B[rows],
        )

    def to(self, device: torch.device | str) -> "WindowBatch":
        return WindowBatch(
            self.consumed,
            self.window_ids_B.to(device),
            self.document_ids_B.to(device),
            self.context.to(device),
            self.continuation.to(device),
            self.positions_B.to(device),
        )
