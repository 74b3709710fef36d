"""What every encoder shares: text → ids → unit vectors, a hash of the weights, a folder on disk."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dream.batch import TokenBatch
from dream.files import FINGERPRINT_CHARACTERS
from dream.store.ragged import pad_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dream.scorers.base import CausalScorer
    from dream.store.store import Store

Side = Literal["query", "passage"]


class Encoder(nn.Module):
    """Text → vector. Queries and passages share the weights; a subclass may treat the two sides differently."""

    tokenizer: "PreTrainedTokenizerBase"
    width: int
    max_tokens: int

    def load(self, store: "Store", scorer: "CausalScorer") -> None:
        """Make the weights, once store and scorer are there. Called once, before training."""

    def forward(self, batch: TokenBatch, side: Side) -> Tensor:
        """embedding_BD, float32, of unit length."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and tokenizer into an existing folder."""
        raise NotImplementedError

    @torch.inference_mode()
    def embed_queries(self, texts: list[str], batch_size: int = 256) -> Tensor:
        """query_QD of raw texts, on the encoder's device, in eval mode."""
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(texts), batch_size):
            rows: Any = self.tokenizer(texts[start : start + batch_size], add_special_tokens=False)["input_ids"]
            batch = pad_tokens([row[: self.max_tokens] for row in rows], self.tokenizer.pad_token_id or 0)
            parts.append(self(batch.to(device), "query"))
        self.train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, self.width, device=device)

    def fingerprint(self) -> str:
        """Short hash of the weights' bytes."""
        digest = hashlib.blake2b()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:FINGERPRINT_CHARACTERS]
