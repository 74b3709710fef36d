"""The records that flow from the store to the objective.

Shape suffixes, here and everywhere: B windows of a step, S those of them that the LM scores, P those that have
candidates, K candidates of a window, U distinct candidates of the step, N passages of the corpus, T tokens (padded),
D embedding width, V vocabulary, Q labelled queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TokenBatch:
    """Padded token ids, right-aligned padding: `ids_BT` int64, `mask_BT` bool (true where a token is)."""

    ids_BT: Tensor
    mask_BT: Tensor

    def __len__(self) -> int:
        return len(self.ids_BT)

    def head(self, count: int) -> "TokenBatch":
        return TokenBatch(self.ids_BT[:count], self.mask_BT[:count])

    def to(self, device: torch.device | str) -> "TokenBatch":
        return TokenBatch(self.ids_BT.to(device), self.mask_BT.to(device))


@dataclass
class WindowBatch:
    """B training windows. `consumed` is how many windows the run has used once this batch is done: its whole state."""

    consumed: int
    window_ids_B: Tensor  # rows of the store's window table
    document_ids_B: Tensor  # rows of the store's document table
    context: TokenBatch  # what the encoder embeds as the query
    continuation: TokenBatch  # the document's text from the target on, for objectives that embed it

    def __len__(self) -> int:
        return len(self.window_ids_B)

    def head(self, count: int) -> "WindowBatch":
        """The first `count` windows of the step."""
        return WindowBatch(
            self.consumed,
            self.window_ids_B[:count],
            self.document_ids_B[:count],
            self.context.head(count),
            self.continuation.head(count),
        )

    def to(self, device: torch.device | str) -> "WindowBatch":
        return WindowBatch(
            self.consumed,
            self.window_ids_B.to(device),
            self.document_ids_B.to(device),
            self.context.to(device),
            self.continuation.to(device),
        )
