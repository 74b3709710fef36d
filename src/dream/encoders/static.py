"""Embeds a text as the weighted mean of its token embeddings. There is no attention, only a table lookup."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from dream.batch import TokenBatch
from dream.encoders.base import Encoder, Side
from dream.utils.atomic_io import write_json
from dream.utils.errors import require

if TYPE_CHECKING:
    from dream.store.store import Store


class StaticEncoder(Encoder):
    """embedding = normalise(Σ_t weight[t] · table[t]) over the text's tokens. Table and weights are trained.

    A token's initial vector has two parts: the given token embedding (centred, unit length), and a random direction.
    The first part makes words with similar use similar. The second part keeps different words different (random
    indexing, Kanerva et al. 2000). The initial weights are inverse document frequencies: log((passages + 1) /
    (passages with the token + 1)).

    Args:
        max_tokens: longer texts are cut, in tokens.
        random_width: dimensions of the random part; 0 for none.
        token_embedding_share: share of a vector's squared length that comes from the token embedding, 0 to 1.
        seed: seed of the random part.

    Raises:
        ConfigError: a value is impossible.

    Example:
        >>> encoder = StaticEncoder(max_tokens=256, random_width=256, token_embedding_share=0.5, seed=0)
        >>> encoder.adopt_tokenizer(scorer.tokenizer)
        >>> encoder.initialize(store, scorer.token_embeddings)
    """

    def __init__(self, max_tokens: int, random_width: int, token_embedding_share: float, seed: int) -> None:
        super().__init__()
        require(max_tokens > 0, "encoder.max_tokens", max_tokens, "at least 1 token")
        require(random_width >= 0, "encoder.random_width", random_width, "0 for none, or the number of dimensions")
        share = token_embedding_share
        require(0 <= share <= 1, "encoder.token_embedding_share", share, "between 0 and 1")
        self.random_width, self.token_embedding_share, self.seed = random_width, share, seed
        self.max_tokens = max_tokens
        self.table_VD = nn.Parameter(torch.empty(0, 0))
        self.weight_V = nn.Parameter(torch.empty(0))

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.table_VD.shape[1]

    def initialize(self, store: "Store", token_embeddings: Callable[[], Tensor]) -> None:
        table_VD = token_embeddings()
        frequency_V = torch.zeros(len(table_VD))
        counts = torch.from_numpy(store.encoder_document_frequency)
        rows = min(len(counts), len(table_VD))  # special tokens, which no text contains, may have no row in the table
        frequency_V[:rows] = counts[:rows]
        # All texts share the mean over the corpus, so it does not help to distinguish them.
        share_V = frequency_V / frequency_V.sum()
        table_VD = F.normalize(table_VD - share_V @ table_VD, dim=1)
        if self.random_width:
            generator = torch.Generator().manual_seed(self.seed)
            random_VD = F.normalize(torch.randn(len(table_VD), self.random_width, generator=generator), dim=1)
            share = self.token_embedding_share
            table_VD = torch.cat([share**0.5 * table_VD, (1 - share) ** 0.5 * random_VD], dim=1)
        self.table_VD = nn.Parameter(table_VD)
        self.weight_V = nn.Parameter(torch.log((len(store.passages) + 1) / (frequency_V + 1)))

    def forward(self, batch: TokenBatch, side: Side) -> Tensor:
        ids_BT = batch.ids_BT * batch.mask_BT  # the padding token may have no row
        weight_BT = self.weight_V[ids_BT] * batch.mask_BT
        table, rows_BT = self.table_VD, ids_BT
        if self.sparse_gradients and torch.is_grad_enabled():
            table, rows_BT = _used_rows(self.table_VD, ids_BT)
        summed_BD = F.embedding_bag(rows_BT, table, mode="sum", per_sample_weights=weight_BT)
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


def _used_rows(table_VD: Tensor, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(the rows of these ids, as a table whose gradient is sparse; the ids as rows of that table)

    `F.embedding_bag` makes sparse gradients, too, but with a row for each token instead of each distinct token.
    """
    used_V = torch.zeros(len(table_VD), dtype=torch.bool, device=ids_BT.device)
    used_V[ids_BT] = True
    rows_UD = F.embedding(used_V.nonzero()[:, 0], table_VD, sparse=True)
    return rows_UD, (used_V.cumsum(0) - 1)[ids_BT]
