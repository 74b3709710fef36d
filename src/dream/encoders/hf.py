"""Any transformers encoder or decoder (`AutoModel`) as text → vector."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from dream.batch import TokenBatch
from dream.encoders.base import Encoder, Side
from dream.utils.atomic_io import write_json
from dream.utils.errors import ConfigError, require

SETTINGS = ("pooling", "query_prefix", "passage_prefix", "max_tokens")


class HFEncoder(Encoder):
    """Pools the last hidden states over the text's tokens.

    The store holds bare token ids; the prefix of the side and the tokenizer's own special tokens are put around them
    here, so that one store serves every prefix. `max_tokens` counts the text's tokens only.
    """

    def __init__(
        self,
        name: str,
        pooling: Literal["mean", "cls", "last"],
        query_prefix: str,
        passage_prefix: str,
        max_tokens: int,
        dtype: str,
        gradient_checkpointing: bool,
        trust_remote_code: bool,
    ) -> None:
        super().__init__()
        require(bool(name), "encoder.name", name, "a hub name or a local folder, e.g. intfloat/e5-small-v2")
        require(pooling in ("mean", "cls", "last"), "encoder.pooling", pooling, "choose mean, cls or last")
        require(max_tokens > 0, "encoder.max_tokens", max_tokens, "at least 1 token")
        require(hasattr(torch, dtype), "encoder.dtype", dtype, "a torch type, e.g. float32 or bfloat16")
        self.pooling, self.query_prefix, self.passage_prefix = pooling, query_prefix, passage_prefix
        self.max_tokens = max_tokens
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
            self.model = AutoModel.from_pretrained(
                name, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, UnpicklingError) as error:
            raise ConfigError("encoder.name", name, f"cannot be loaded: {str(error).splitlines()[0]}") from error
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        self.model.train()  # from_pretrained returns eval mode, and Lightning would keep it
        self._prepare_frames()

    def _prepare_frames(self) -> None:
        """Token ids that stand before and after a text, by side."""
        marker: Any = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        framed: Any = self.tokenizer("a")["input_ids"]
        at = next((i for i in range(len(framed)) if framed[i : i + len(marker)] == marker), 0)
        before, after = framed[:at], framed[at + len(marker) :]
        self.frames: dict[str, tuple[list[int], list[int]]] = {}
        for side, prefix in (("query", self.query_prefix), ("passage", self.passage_prefix)):
            self.frames[side] = (before + self.tokenizer(prefix, add_special_tokens=False)["input_ids"], after)
        framing = max(len(before) + len(after) for before, after in self.frames.values())
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.max_tokens + framing
        require(self.max_tokens + framing <= positions, "encoder.max_tokens", self.max_tokens,
                f"at most {positions - framing} beside prefix and markers: the model reads {positions}")  # fmt: skip

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.model.config.hidden_size

    def forward(self, batch: TokenBatch, side: Side) -> Tensor:
        batch = self._framed(batch, side)
        output = self.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long())
        hidden_BTD = output.last_hidden_state.float()
        lengths_B = batch.mask_BT.sum(1)
        if self.pooling == "mean":
            pooled_BD = (hidden_BTD * batch.mask_BT[..., None]).sum(1) / lengths_B[:, None]
        else:
            row_B = torch.zeros_like(lengths_B) if self.pooling == "cls" else lengths_B - 1
            pooled_BD = hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), row_B]
        return F.normalize(pooled_BD, dim=1)

    def _framed(self, batch: TokenBatch, side: Side) -> TokenBatch:
        """The batch with prefix and special tokens; padding stays last."""
        before, after = self.frames[side]
        lengths_B = batch.mask_BT.sum(1)
        rows, tokens = batch.ids_BT.shape
        shape = (rows, tokens + len(before) + len(after))
        ids_BT = batch.ids_BT.new_full(shape, self.tokenizer.pad_token_id or 0)
        ids_BT[:, len(before) : len(before) + tokens] = batch.ids_BT.where(batch.mask_BT, ids_BT[:, :1])
        ids_BT[:, : len(before)] = torch.tensor(before, dtype=ids_BT.dtype, device=ids_BT.device)
        for offset, token in enumerate(after):
            ids_BT[torch.arange(rows, device=ids_BT.device), lengths_B + len(before) + offset] = token
        positions_T = torch.arange(shape[1], device=ids_BT.device)
        return TokenBatch(ids_BT, positions_T < (lengths_B + len(before) + len(after))[:, None])

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "encoder.json", {"kind": "hf"} | self.settings())

    @classmethod
    def open(cls, folder: Path) -> "HFEncoder":
        """The encoder that `save` wrote."""
        settings = json.loads((folder / "encoder.json").read_text())
        return cls(
            name=str(folder),
            **{name: settings[name] for name in SETTINGS},
            dtype="float32",
            gradient_checkpointing=False,
            trust_remote_code=False,
        )
