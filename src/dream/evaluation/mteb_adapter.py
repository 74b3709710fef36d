"""A DREAM run as an encoder of mteb: `mteb.evaluate(DreamEncoder("logs/latest"), tasks=...)`.

mteb compares one vector per document, made from the first `encoder.max_tokens` tokens. `dream-evaluate
passages_per_document=1 passage_tokens=MAX_TOKENS` gives the same figures. By default, dream-evaluate searches all
passages.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.encoders.base import Side
from dream.runs.load import open_encoder


class DreamEncoder:
    """`EncoderProtocol` of mteb 2. Document vectors have the precision of the index, float16.

    Args:
        model_name: folder of a finished run.
        revision: shown in mteb's results.
        device: the device that the encoder runs on; None: cpu.
        trust: packages, besides dream, whose classes the run's config may name.
        kwargs: ignored; mteb may pass more arguments.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        trust: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.name, self.revision = str(model_name), revision or "local"
        _, self.encoder = open_encoder(Path(model_name), device or "cpu", trust=trust)

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
        """(texts, D) float32. The text of a document is its title, a newline, and its body, as in DREAM's corpora."""
        side: Side = "query" if getattr(prompt_type, "value", prompt_type) == "query" else "passage"
        parts = [self.encoder.embed_texts(_texts(batch, side), side).float().cpu() for batch in inputs]
        embedding_BD = torch.cat(parts) if parts else torch.empty(0, self.encoder.width)
        return (embedding_BD if side == "query" else embedding_BD.half().float()).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Inner products of all pairs: cosines, because the vectors have unit length."""
        return _float(embeddings1) @ _float(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Inner product of each pair of rows."""
        return (_float(embeddings1) * _float(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """Facts that mteb stores with the results."""
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
