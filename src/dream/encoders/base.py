"""Base class of all encoders: text → ids → unit vectors, a hash of the weights, a folder on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dream.batch import TokenBatch
from dream.store.ragged import pad_tokens
from dream.utils.atomic_io import FINGERPRINT_CHARACTERS, fingerprint
from dream.utils.runtime import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dream.store.store import Store

Side = Literal["query", "passage"]


def cosines(query_BD: Tensor, other_AD: Tensor) -> Tensor:
    """sim_BA of unit vectors, in their own type also under autocast.

    bfloat16 has steps of 0.004 between 0.5 and 1: with a temperature of 0.05, a logit would be wrong by up to 0.04.
    """
    with torch.autocast(query_BD.device.type, enabled=False):
        return query_BD @ other_AD.T


class Encoder(nn.Module):
    """Text → vector of unit length. Queries and passages share the weights; a subclass may treat them differently.

    Attributes:
        tokenizer: cuts the passages of the store. Encoders without a tokenizer get one by `adopt_tokenizer`.
        width: D, width of the embeddings.
        max_tokens: longer texts are cut. In tokens, without prefix and special tokens.

    Example:
        A new encoder implements `forward`, `save`, `open`, `width` and `max_tokens`, see `dream.encoders.static`.
    """

    tokenizer: "PreTrainedTokenizerBase"
    width: int
    max_tokens: int

    def adopt_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Use this tokenizer, unless the encoder has its own."""
        if getattr(self, "tokenizer", None) is None:
            self.tokenizer = tokenizer

    def width_with(self, scorer_width: int) -> int:
        """The width after `initialize` with token embeddings of this width."""
        return self.width

    def initialize(self, store: "Store", token_embeddings: Callable[[], Tensor]) -> None:
        """Create the initial weights, if the encoder does not load them. Called once, before training.

        Args:
            store: store of the corpus.
            token_embeddings: returns embeddings (V, D), float32, of the tokens of the adopted tokenizer.
        """

    def forward(self, batch: TokenBatch, side: Side) -> Tensor:
        """embedding_BD, float32, of unit length.

        Args:
            batch: token ids as in the store, without prefix and special tokens; `forward` adds these.
            side: which prefix and weights to use.
        """
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and tokenizer into an existing folder."""
        raise NotImplementedError

    def embed_queries(self, texts: list[str]) -> Tensor:
        """query_QD of raw texts; see `embed_texts`."""
        return self.embed_texts(texts, "query")

    @torch.inference_mode()
    def embed_texts(self, texts: list[str], side: Side, batch_size: int = 256) -> Tensor:
        """Embeddings of raw texts, cut to `max_tokens`, on the encoder's device, in eval mode."""
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        parts = []
        for start in progress(range(0, len(texts), batch_size), desc="embedding texts", leave=False, delay=5):
            parts.append(self.embed_batch(texts[start : start + batch_size], side, device))
        self.train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, self.width, device=device)

    def embed_batch(self, texts: list[str], side: Side, device: torch.device) -> Tensor:
        """embedding_BD of a few raw texts. A special token in a text, e.g. "[SEP]", is read as plain text."""
        rows: Any = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        batch = pad_tokens([row[: self.max_tokens] for row in rows], self.tokenizer.pad_token_id or 0)
        return self(batch.to(device), side)

    def embed_passages(self, store: "Store", passage_ids: np.ndarray, device: torch.device | str) -> Tensor:
        """embedding_BD of these passages of a store that was cut with this encoder's tokenizer."""
        return self(store.passage_batch(passage_ids, self.max_tokens).to(device), "passage")

    def blocks(self) -> list[nn.Module]:
        """The layers whose weights `trainer=fsdp` assembles one after another; none: it cannot divide this encoder."""
        return []

    def settings(self) -> dict[str, Any]:
        """Settings that an embedding depends on, without the weights, as JSON types."""
        return {"max_tokens": self.max_tokens}

    def identity(self) -> str:
        """Short hash of everything that an embedding depends on: weights and settings."""
        return fingerprint([self.fingerprint(), self.settings()])

    def weights(self) -> dict[str, Tensor]:
        """All weights that an embedding depends on, by name."""
        return self.state_dict()

    def fingerprint(self) -> str:
        """Short hash of the weights as float32, the type in which they are opened after training."""
        digest = hashlib.blake2b()
        for name, tensor in sorted(self.weights().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:FINGERPRINT_CHARACTERS]
