"""A copy of the encoder before training, for objectives that compare with it."""

import copy

import torch
from torch import Tensor

from dream.batch import TokenBatch
from dream.encoders.base import Encoder, cosines
from dream.store.store import Store


class UntrainedEncoder:
    """The encoder with its weights before training. It is not a module, so checkpoints do not contain it.

    Args:
        encoder: an encoder that has not been trained yet. It is copied.
        store: the store of the passages.

    Example:
        >>> untrained = UntrainedEncoder(encoder, store)
        >>> sim_SK = untrained.similarities(batch.context, candidate_ids_SK)
    """

    def __init__(self, encoder: Encoder, store: Store) -> None:
        self.encoder, self.store = copy.deepcopy(encoder).eval().requires_grad_(False), store

    def to(self, device: torch.device) -> None:
        """Move the copy to another device."""
        self.encoder.to(device)

    @torch.no_grad()
    def similarities(self, context: TokenBatch, candidate_ids_SK: Tensor) -> Tensor:
        """sim_SK: cosine of each context and its candidates, without gradient.

        Args:
            context: the S contexts.
            candidate_ids_SK: passage ids.
        """
        distinct_U, columns_SK = torch.unique(candidate_ids_SK, return_inverse=True)
        passages = self.store.passage_batch(distinct_U, self.encoder.max_tokens, training=True)
        passage_UD = self.encoder(passages.to(context.ids_BT.device), "passage")
        sim_SU = cosines(self.encoder(context, "query"), passage_UD)
        return sim_SU.gather(1, columns_SK.to(sim_SU.device))
