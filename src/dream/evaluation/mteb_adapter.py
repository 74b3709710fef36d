"""A DREAM run as an encoder of mteb: `mteb.evaluate(DreamEncoder("logs/latest"), tasks=...)`.

mteb compares one vector a document: its beginning, `encoder.max_tokens` long. The same figures come from
`dream-evaluate passages_per_document=1 passage_tokens=MAX_TOKENS`; by default, dream-evaluate looks at all passages.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.encoders.base import Side
from dream.runs.load import open_encoder


class DreamEncoder:
    """`EncoderProtocol` of mteb 2. Vectors are those of the index: of documents in float16's precision."""

    def __init__(self, model_name: str, revision: str | None = None, *, device: str | None = None, **kwargs: Any):
        self.name, self.revision = str(model_name), revision or "local"
        _, self.encoder = open_encoder(Path(model_name), device or "cpu")

    def encode(
        self,
        inputs: Iterable[dict[str, list]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """(texts, D) float32. Documents are put together as in DREAM's corpora: the title, a newline, the text."""
        side: Side = "query" if getattr(prompt_type, "value", prompt_type) == "query" else "passage"
        parts = [self.encoder.embed_texts(_texts(batch, side), side).float().cpu() for batch in inputs]
        embedding_BD = torch.cat(parts) if parts else torch.empty(0, self.encoder.width)
        return (embedding_BD if side == "query" else embedding_BD.half().float()).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Inner products, which of unit vectors are cosines."""
        return _float(embeddings1) @ _float(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        return (_float(embeddings1) * _float(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        from mteb.models import ModelMeta

        name = f"dream/{Path(self.name).resolve().name}"
        facts = {"name": name, "revision": self.revision, "embed_dim": self.encoder.width,
                 "max_tokens": self.encoder.max_tokens, "similarity_fn_name": "cosine"}  # fmt: skip
        return ModelMeta.create_empty(overwrites=facts)


def _texts(batch: dict[str, list], side: Side) -> list[str]:
    if side == "query" or "body" not in batch:
        return list(batch["text"])
    titles = batch.get("title") or [""] * len(batch["body"])
    pairs = zip(titles, batch["body"], strict=True)
    return ["\n".join(part.strip() for part in pair if part and part.strip()) for pair in pairs]


def _float(embeddings: Any) -> Tensor:
    return torch.as_tensor(np.asarray(embeddings), dtype=torch.float32)
