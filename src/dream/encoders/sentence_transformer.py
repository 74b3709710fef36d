"""A published sentence-transformers model as a baseline. Texts are embedded by the library's own `encode`."""

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

UNLIMITED = 512  # tokens of a passage if the model has no limit
SIMILARITIES = {"cosine": True, "dot": False}  # whether to normalise embeddings; the index uses the inner product


def import_sentence_transformers(system: str) -> Any:
    """Import the library, which is an optional dependency. Raises ConfigError if it is not installed."""
    try:
        import sentence_transformers
    except ImportError as error:
        remedy = "needs sentence-transformers: pip install 'dream-retrieval[export]'"
        raise ConfigError("systems", system, remedy) from error
    return sentence_transformers


class SentenceTransformerEncoder(Encoder):
    """Embeds texts instead of ids, so prompts, pooling, truncation and other modules are those of the model.

    The store's passages are cut with the model's tokenizer. Their length is the model's limit minus its prompt and
    special tokens.

    Args:
        name: hub name or folder.
        query_prompt: text before every query; None: the prompt that the model was published with.
        passage_prompt: text before every passage; None: the prompt that the model was published with.
        dtype: torch type of the weights.
        trust_remote_code: run Python code from the model's repository.

    Raises:
        ConfigError: the library is missing, or the model cannot be loaded.
    """

    def __init__(
        self, name: str, query_prompt: str | None, passage_prompt: str | None, dtype: str, trust_remote_code: bool
    ) -> None:
        super().__init__()
        SentenceTransformer = import_sentence_transformers(f"st:{name}").SentenceTransformer
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # it logs each model that it loads
        require(hasattr(torch, dtype), "st.dtype", dtype, "a torch type, e.g. float32 or bfloat16")
        options = {"dtype": getattr(torch, dtype)}
        try:
            self.model: Any = SentenceTransformer(name, trust_remote_code=trust_remote_code, model_kwargs=options)
        except Exception as error:  # its loaders raise errors of many libraries, which share no base class
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
        """Number of tokens that the model reads of a passage, without prompt and special tokens."""
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
        """The modules and their settings as the library prints them. The fingerprint covers their weights."""
        description = hashlib.blake2b(repr(self.model).encode()).hexdigest()
        return {"model": description, "prompts": self.prompts, "own_prompts": dict(self.model.prompts),
                "max_tokens": self.max_tokens, "normalises": self.normalises}  # fmt: skip


def _fast(tokenizer: Any, name: str) -> PreTrainedTokenizerFast:
    """The model's tokenizer in the form that the store needs. Static models have one of the tokenizers library."""
    if hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer
    require(hasattr(tokenizer, "to_str"), "systems", f"st:{name}", "has no fast tokenizer, which the store needs")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
