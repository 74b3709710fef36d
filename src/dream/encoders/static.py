"""Weighted mean of token embeddings: no attention, so a passage costs a table lookup."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from dream.batch import TokenBatch
from dream.encoders.base import Encoder, Side
from dream.errors import require
from dream.files import write_json


class StaticEncoder(Encoder):
    """embedding = normalise(Σ_t weight[t] · table[t]) over the text's tokens.

    A token starts as the scorer's input embedding of it (centred, unit length), with `scorer_share` of the squared
    length, beside `random_width` random directions with the rest: the first puts words that are used alike together,
    the second keeps different words apart (random indexing, Kanerva et al. 2000). Weights start as the passages'
    inverse document frequencies. Both are trained. Token ids are the scorer's.
    """

    def __init__(self, scorer, max_tokens: int, random_width: int, scorer_share: float, seed: int) -> None:
        super().__init__()
        require(max_tokens > 0, "encoder.max_tokens", max_tokens, "at least 1 token")
        require(random_width >= 0, "encoder.random_width", random_width, "0 for none, or the number of directions")
        require(0 <= scorer_share <= 1, "encoder.scorer_share", scorer_share, "between 0 and 1")
        self.random_width, self.scorer_share, self.seed = random_width, scorer_share, seed
        self.tokenizer = scorer.tokenizer
        self.max_tokens = max_tokens
        self.table_VD = nn.Parameter(torch.empty(0, 0))
        self.weight_V = nn.Parameter(torch.empty(0))

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.table_VD.shape[1]

    def load(self, store, scorer) -> None:
        scorer.load(store)
        table_VD = scorer.token_embeddings()
        frequency_V = torch.zeros(len(table_VD))
        counts = torch.from_numpy(store.encoder_document_frequency)
        frequency_V[: len(counts)] = counts
        # The mean over the corpus is the direction that every text shares and that no ranking needs.
        share_V = frequency_V / frequency_V.sum()
        table_VD = F.normalize(table_VD - share_V @ table_VD, dim=1)
        if self.random_width:
            generator = torch.Generator().manual_seed(self.seed)
            random_VD = F.normalize(torch.randn(len(table_VD), self.random_width, generator=generator), dim=1)
            table_VD = torch.cat([self.scorer_share**0.5 * table_VD, (1 - self.scorer_share) ** 0.5 * random_VD], dim=1)
        self.table_VD = nn.Parameter(table_VD)
        self.weight_V = nn.Parameter(torch.log((len(store.passages) + 1) / (frequency_V + 1)))

    def forward(self, batch: TokenBatch, side: Side) -> Tensor:
        weight_BT = self.weight_V[batch.ids_BT] * batch.mask_BT
        summed_BD = F.embedding_bag(batch.ids_BT, self.table_VD, mode="sum", per_sample_weights=weight_BT)
        return F.normalize(summed_BD, dim=1)

    def save(self, folder: Path) -> None:
        save_file(
            {"table": self.table_VD.detach().contiguous(), "weight": self.weight_V.detach()},
            folder / "model.safetensors",
        )
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "encoder.json", {"kind": "static", "max_tokens": self.max_tokens})

    @classmethod
    def open(cls, folder: Path) -> "StaticEncoder":
        """The encoder that `save` wrote."""
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        encoder.tokenizer = AutoTokenizer.from_pretrained(folder)
        encoder.max_tokens = json.loads((folder / "encoder.json").read_text())["max_tokens"]
        weights = load_file(folder / "model.safetensors")
        encoder.table_VD = nn.Parameter(weights["table"])
        encoder.weight_V = nn.Parameter(weights["weight"])
        return encoder
