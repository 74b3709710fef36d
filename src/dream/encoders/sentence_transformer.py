"""A published sentence-transformers model as it is, to be measured against: text → vector by its own `encode`."""

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dream.encoders.base import Encoder, Side
from dream.utils.errors import ConfigError, require
from dream.utils.runtime import progress

if TYPE_CHECKING:
    from dream.store.store import Store

UNLIMITED = 512  # tokens of a passage where the model reads any length
SIMILARITIES = {"cosine": True, "dot": False}  # whether embeddings are made unit vectors; the index takes products


def import_sentence_transformers(system: str) -> Any:
    """The library, which an extra installs; ConfigError where it is not there."""
    try:
        import sentence_transformers
    except ImportError as error:
        remedy = "needs sentence-transformers: pip install 'dream-retrieval[export]'"
        raise ConfigError("systems", system, remedy) from error
    return sentence_transformers


class SentenceTransformerEncoder(Encoder):
    """Embeds texts, not ids, so that prompts, pooling, truncation and further modules are the model's own.

    The store's passages are cut with the model's tokenizer, as long as the model reads beside its prompt and special
    tokens. A prompt of None is the one that the model was published with.
    """

    def __init__(
        self, name: str, query_prompt: str | None, passage_prompt: str | None, dtype: str, trust_remote_code: bool
    ) -> None:
        super().__init__()
        SentenceTransformer = import_sentence_transformers(f"st:{name}").SentenceTransformer
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # it tells what it loads, and on what
        require(hasattr(torch, dtype), "st.dtype", dtype, "a torch type, e.g. float32 or bfloat16")
        options = {"dtype": getattr(torch, dtype)}
        try:
            self.model: Any = SentenceTransformer(name, trust_remote_code=trust_remote_code, model_kwargs=options)
        except Exception as error:  # the library lets through whatever its many loaders raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError("systems", f"st:{name}", f"cannot be loaded: {reason}") from error
        similarity = str(self.model.similarity_fn_name or "cosine")
        require(similarity in SIMILARITIES, "systems", f"st:{name}", f"compares by {similarity}, but an index takes "
                f"{' or '.join(SIMILARITIES)}")  # fmt: skip
        self.normalises = SIMILARITIES[similarity]
        self.prompts: dict[Side, str | None] = {"query": query_prompt, "passage": passage_prompt}
        self.tokenizer = _fast(self.model.tokenizer, name)
        self.max_tokens = self._room()
        self.width = len(self._encode(["a"], "passage")[0])

    def _room(self) -> int:
        """Tokens that the model reads of a passage, beside the prompt and special tokens."""
        limit = self.model.max_seq_length
        if limit is None or limit > 1_000_000:
            return UNLIMITED
        prompt = self.prompts["passage"]
        prompt = prompt if prompt is not None else self.model.prompts.get("document", "")
        ids: Any = self.tokenizer(prompt)["input_ids"]
        return max(1, int(limit) - len(ids))

    def _encode(self, texts: list[str], side: Side) -> Tensor:
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        own = {} if self.prompts[side] is None else {"prompt": self.prompts[side]}
        return encode(texts, batch_size=max(1, len(texts)), convert_to_tensor=True, show_progress_bar=False,
                      normalize_embeddings=self.normalises, **own).float()  # fmt: skip

    @torch.inference_mode()
    def embed_texts(self, texts: list[str], side: Side, batch_size: int = 256) -> Tensor:
        starts = progress(range(0, len(texts), batch_size), desc="embedding texts", leave=False, delay=5)
        parts = [self._encode(texts[start : start + batch_size], side) for start in starts]
        return torch.cat(parts) if parts else torch.empty(0, self.width)

    def embed_passages(self, store: "Store", passage_ids: np.ndarray, device: torch.device | str) -> Tensor:
        return self._encode([store.passage_text(int(passage)) for passage in passage_ids], "passage")

    def settings(self) -> dict[str, Any]:
        """Modules and their settings as the library prints them; their weights are in the fingerprint."""
        description = hashlib.blake2b(repr(self.model).encode()).hexdigest()
        return {"model": description, "prompts": self.prompts, "own_prompts": dict(self.model.prompts),
                "max_tokens": self.max_tokens, "normalises": self.normalises}  # fmt: skip


def _fast(tokenizer: Any, name: str) -> PreTrainedTokenizerFast:
    """The model's tokenizer as the store needs it; static models have a bare one."""
    if hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer
    require(hasattr(tokenizer, "to_str"), "systems", f"st:{name}", "has no fast tokenizer, which the store needs")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
