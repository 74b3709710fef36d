"""Embeds a text as the weighted mean of its token embeddings. There is no attention, only a table lookup."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from dream.batch import TokenBatch
from dream.encoders.base import Encoder, Side
from dream.encoders.weighted_sum import make_dense, weighted_sum
from dream.encoders.word_tokenizer import word_tokenizer
from dream.store.ragged import pad_tokens
from dream.store.tokens import plain_tokenizer
from dream.utils.atomic_io import write_json
from dream.utils.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dream.store.store import Store


class StaticEncoder(Encoder):
    """embedding = normalise(Σ_t weight[t] · table[t]) over the text's tokens. Table and weights are trained.

    A token's initial vector has two parts: the given token embedding (centred, unit length), and a random direction.
    The first part makes words with similar use similar. The second part keeps different words different (random
    indexing, Kanerva et al. 2000). The initial weights are inverse document frequencies: log((passages + 1) /
    (passages with the token + 1)).

    A language model's vocabulary has many tokens that a corpus lacks. They get no gradient, so they keep their initial
    vectors, for other corpora, but are no parameters: gradients, optimizer and checkpoints contain only the rows of the
    corpus's own tokens. Up to rounding, this gives the same weights as training all rows.

    Attributes:
        table_VD: the vectors of the V tokens of the corpus; of an opened encoder, of all tokens.
        weight_V: a weight for each token, also for those that the corpus lacks.
        other_VD: the vectors of the other tokens, not trained.
        row_V: int64, the row of each token in `table_VD` followed by `other_VD`.
        folder: of an opened encoder, where its tokenizer is.

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

    other_VD: Tensor
    row_V: Tensor
    folder: Path

    def __init__(self, max_tokens: int, random_width: int, token_embedding_share: float, seed: int) -> None:
        super().__init__()
        require(max_tokens > 0, "encoder.max_tokens", max_tokens, "at least 1 token")
        require(random_width >= 0, "encoder.random_width", random_width, "0 for none, or the number of dimensions")
        share = token_embedding_share
        require(0 <= share <= 1, "encoder.token_embedding_share", share, "between 0 and 1")
        self.random_width, self.token_embedding_share, self.seed = random_width, share, seed
        self.max_tokens = max_tokens
        self._set(torch.empty(0, 0), torch.empty(0))

    def _set(self, table_VD: Tensor, weight_V: Tensor, used_V: Tensor | None = None) -> None:
        """Set the weights of all tokens. `used_V`: which of them are trained; None: all."""
        used_V = torch.ones(len(table_VD), dtype=torch.bool) if used_V is None else used_V
        order_V = torch.cat([used_V.nonzero()[:, 0], (~used_V).nonzero()[:, 0]])
        self.table_VD, self.weight_V = nn.Parameter(table_VD[used_V]), nn.Parameter(weight_V)
        self.register_buffer("other_VD", table_VD[~used_V], persistent=False)
        self.register_buffer("row_V", order_V.argsort(), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        table_VD = self.table_VD.detach()
        if len(self.other_VD):
            trained_V = self.row_V < len(self.table_VD)
            all_VD = table_VD.new_empty(len(self.row_V), self.width)
            all_VD[trained_V], all_VD[~trained_V] = table_VD, self.other_VD
            table_VD = all_VD
        return {"table_VD": table_VD, "weight_V": self.weight_V.detach()}

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.table_VD.shape[1]

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":  # type: ignore[override]
        """Of an opened encoder, read on first use: importing transformers would take a third of a search's time."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self.folder)

    @cached_property
    def reader(self) -> Tokenizer:
        """The same tokenizer for raw texts, without transformers."""
        if "tokenizer" in self.__dict__:
            return plain_tokenizer(self.tokenizer.backend_tokenizer.to_str())
        return plain_tokenizer((self.folder / "tokenizer.json").read_text(encoding="utf-8"))

    def adopt_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Use a copy of this tokenizer that ignores case and blanks: see `word_tokenizer`."""
        super().adopt_tokenizer(word_tokenizer(tokenizer))

    def width_with(self, scorer_width: int) -> int:
        return scorer_width + self.random_width

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
        weight_V = torch.log((len(store.passages) + 1) / (frequency_V + 1))
        self._set(table_VD, weight_V, used_V=frequency_V > 0)

    def embed_batch(self, texts: list[str], side: Side, device: torch.device) -> Tensor:
        rows: Any = [encoding.ids for encoding in self.reader.encode_batch_fast(texts, add_special_tokens=False)]
        return self(pad_tokens([row[: self.max_tokens] for row in rows], 0).to(device), side)

    def forward(self, batch: TokenBatch, side: Side) -> Tensor:
        if torch.is_grad_enabled():
            make_dense(self.table_VD)
            make_dense(self.weight_V)
        ids_BT = batch.ids_BT * batch.mask_BT  # the padding token may have no row
        row_BT, trained = self.row_V[ids_BT], len(self.table_VD)
        is_trained_BT = batch.mask_BT & (row_BT < trained)
        summed_BD = weighted_sum(self.table_VD, self.weight_V, row_BT, ids_BT, is_trained_BT)
        is_other_BT = batch.mask_BT & ~is_trained_BT
        if is_other_BT.any():
            summed_BD = summed_BD + weighted_sum(self.other_VD, self.weight_V, row_BT - trained, ids_BT, is_other_BT)
        return F.normalize(summed_BD, dim=1)

    def save(self, folder: Path) -> None:
        save_file(
            {name.split("_")[0]: weight.contiguous() for name, weight in self.weights().items()},
            folder / "model.safetensors",
        )
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "encoder.json", {"kind": "static", "max_tokens": self.max_tokens})

    @classmethod
    def open(cls, folder: Path) -> "StaticEncoder":
        """The encoder that `save` wrote."""
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        encoder.folder = folder
        encoder.max_tokens = json.loads((folder / "encoder.json").read_text())["max_tokens"]
        weights = load_file(folder / "model.safetensors")
        encoder._set(weights["table"], weights["weight"])
        return encoder
