"""Uses any transformers encoder or decoder as a text encoder. Settings of a sentence-transformers folder are read."""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING, AutoModel, AutoModelForTextEncoding

from dream.batch import TokenBatch
from dream.encoders import lora as adapters
from dream.encoders import st_folder
from dream.encoders.attention import choose_attention, choose_direction
from dream.encoders.base import Encoder, Side
from dream.encoders.chunks import embed_in_chunks, fastest_chunk
from dream.encoders.dropout import choose_dropout
from dream.encoders.framing import Framing, prepare_tokenizer
from dream.encoders.pooling import POOLINGS, pool
from dream.encoders.st_folder import Published
from dream.store.ragged import pad_tokens
from dream.utils.atomic_io import write_json
from dream.utils.errors import ConfigError, require
from dream.utils.logging import get_logger
from dream.utils.model_probe import probe
from dream.utils.pretrained import Pretrained

if TYPE_CHECKING:
    from dream.store.store import Store

log = get_logger(__name__)

SETTINGS = ("pooling", "query_prefix", "passage_prefix", "max_tokens")
DEFAULT_TOKENS = 256  # length of a text, if neither the config nor the folder gives a length
UNUSED = ("pooler.", "decoder.")  # prefixes of weights that embeddings do not depend on


class HFEncoder(Encoder):
    """Pools the last hidden states over all tokens: prefix, text and special tokens.

    Pooling, Dense layers, prompts and length are read from a sentence-transformers folder. An argument that is set here
    replaces the folder's value. Only the encoder of an encoder–decoder model is used.

    Args:
        name: hub name or folder of a transformers or sentence-transformers model.
        pooling: mean, cls, last or max (over tokens); auto: the folder's pooling, otherwise mean.
        query_prefix: text before every query; None: the folder's query prompt, otherwise none.
        passage_prefix: text before every passage; None: the folder's document prompt, otherwise none.
        max_tokens: longer texts are cut, in tokens of the text only; None: the folder's length, otherwise 256.
        dtype: torch type of the weights.
        dropout: probability of all dropout in training: see `choose_dropout`. None: as published.
        gradient_checkpointing: compute activations twice instead of keeping them.
        chunk: most texts of a forward; in training, with cached gradients: see `embed_in_chunks`. None: no limit.
        trust_remote_code: run Python code from the model's repository.
        attention: implementation of attention: see `dream.encoders.attention`.
        bidirectional: whether each token reads the whole text; None: as the model was published.
        compile: run the model with torch.compile.
        lora: train low-rank adapters instead of all weights: see `dream.encoders.lora`. rank 0: none.

    Raises:
        ConfigError: a value is impossible, or the model cannot be loaded.

    Example:
        >>> encoder = HFEncoder("intfloat/e5-small-v2", "mean", "query: ", "passage: ", 256, "float32", 0.0, False,
        ...                     None, False, "auto", None, False,
        ...                     {"rank": 0, "alpha": 32, "dropout": 0.0, "targets": None})
        >>> encoder.embed_queries(["how do I read a file"]).shape
        torch.Size([1, 384])
    """

    model: Any

    def __init__(
        self,
        name: str,
        pooling: Literal["auto", "mean", "cls", "last", "max"],
        query_prefix: str | None,
        passage_prefix: str | None,
        max_tokens: int | None,
        dtype: str,
        dropout: float | None,
        gradient_checkpointing: bool,
        chunk: int | None,
        trust_remote_code: bool,
        attention: str,
        bidirectional: bool | None,
        compile: bool,
        lora: Mapping[str, Any],
    ) -> None:
        super().__init__()
        adapters.check_values(lora)
        weight_type = _check_values(pooling, max_tokens, dtype)
        require(chunk is None or chunk > 0, "encoder.chunk", chunk, "null, or at least 1 text")
        self.chunk, self.compiled = chunk, compile
        source = Pretrained("encoder.name", name, trust_remote_code)
        published = st_folder.read(source)
        source.subfolder = published.subfolder
        self.pooling = pooling if pooling != "auto" else published.pooling or "mean"
        self.query_prefix = _first(query_prefix, published.prefixes["query"], "")
        self.passage_prefix = _first(passage_prefix, published.prefixes["passage"], "")
        self._read_model(source, published, weight_type)
        choose_dropout(self._reader, dropout)
        choose_direction(self._reader, bidirectional)
        limit = self._probe(source)
        choose_attention(self._reader, attention)  # after the probes, which run on the CPU: flash attention cannot
        own_length = published.max_tokens or (limit if published.found else None)  # like sentence-transformers
        self.max_tokens = self._length(max_tokens, own_length, limit)
        if gradient_checkpointing:
            with source.loading():
                self.model.activation_checkpointing_enable()
        self.has_adapter = bool(lora["rank"])
        if self.has_adapter:
            self.model = adapters.add_adapter(self.model, lora)
            adapters.save_only_adapter(self, "model")
        if compile:  # in place, so that names of weights stay the same
            self._reader.compile(dynamic=True)
        self.train()  # from_pretrained returns a model in eval mode, and Lightning would keep this mode
        if published.found:
            self._report(source.name, published, (pooling, query_prefix, passage_prefix, max_tokens))

    def _read_model(self, source: Pretrained, published: Published, weight_type: torch.dtype) -> None:
        """Read tokenizer, weights and layers."""
        config = source.config()
        self.own_tokenizer = source.tokenizer()
        prepare_tokenizer(self.own_tokenizer, published.lower_case)
        self.framing = Framing(self.own_tokenizer, {"query": self.query_prefix, "passage": self.passage_prefix})
        self.tokenizer = self.framing.store_tokenizer
        self.model, self.has_decoder = _load(source, config, weight_type)
        if published.found and self.has_decoder:
            raise source.refuse("takes its embeddings from a decoder after an encoder", "choose another model")
        self.layers = nn.Sequential(*published.layers)
        rows = len(self.model.get_input_embeddings().weight)
        source.require_rows(self.own_tokenizer, rows, self.framing.frame_texts([""], "query", 1)[0])
        self.framing.pad_id = self.framing.pad_id if self.framing.pad_id < rows else 0  # any id: padding is masked

    def _probe(self, source: Pretrained) -> int | None:
        """Check that model and layers fit together. Returns the maximum number of tokens that the model reads."""
        with source.loading():
            limit, output = probe(self._reader)
            hidden_1TD = output.last_hidden_state
            self.hidden_width = hidden_1TD.shape[-1]
            with torch.no_grad():
                self.embedding_width = self.layers(hidden_1TD[:, 0].float()).shape[-1]
        return limit

    def _length(self, wanted: int | None, published: int | None, limit: int | None) -> int:
        """Maximum number of tokens of a text. Prefix and special tokens must also fit into the model's limit."""
        framing = self.framing.tokens
        if wanted is None:
            wanted = published - framing if published else DEFAULT_TOKENS
            wanted = min(wanted, limit - framing) if limit else wanted
            require(wanted > 0, "encoder.max_tokens", "null", f"prefix and special tokens take all of the "
                    f"{limit or published} tokens that the model reads; shorten the prefixes")  # fmt: skip
        require(limit is None or wanted + framing <= limit, "encoder.max_tokens", wanted,
                f"at most {(limit or 0) - framing} besides prefix and special tokens: the model reads {limit}"
                )  # fmt: skip
        return wanted

    def _report(self, name: str, published: Published, given: tuple[Any, ...]) -> None:
        """Log what was taken from a sentence-transformers folder, and what the config replaced."""
        own = (published.pooling, published.prefixes["query"], published.prefixes["passage"],
               published.max_tokens and published.max_tokens - self.framing.tokens)  # fmt: skip
        if None not in given and "auto" not in given:
            return
        taken = [f"{key}={getattr(self, key)!r}" for key, value in zip(SETTINGS, given, strict=True)
                 if value in (None, "auto")]  # fmt: skip
        replaced = [f"{key}={value!r} replaces {folder_value!r}" for key, value, folder_value in
                    zip(SETTINGS, given, own, strict=True)
                    if value not in (None, "auto", folder_value) and folder_value is not None]  # fmt: skip
        log.info(f"Encoder {name}, from its sentence-transformers folder: "
                 f"{', '.join([*taken, *map(str, self.layers), *replaced])}")  # fmt: skip
        if published.similarity not in (None, "cosine") and not published.normalized:
            log.warning(f"encoder.name={name}: was published for similarity {published.similarity}; here embeddings "
                        "have unit length, so that the similarity is the cosine")  # fmt: skip

    def initialize(self, store: "Store", token_embeddings: Callable[[], Tensor]) -> None:
        longest = store.manifest["lengths"][0]
        if longest > self.max_tokens:
            log.warning(f"data.passage_tokens={longest}: the encoder reads {self.max_tokens} tokens of a passage "
                        f"(encoder.max_tokens); set data.passage_tokens={self.max_tokens}, so that it reads all of "
                        "them")  # fmt: skip

    @property
    def _reader(self) -> Any:
        """The part of the model that reads the text."""
        return self.model.get_encoder() if self.has_decoder else self.model

    def blocks(self) -> list[nn.Module]:
        names = getattr(self._reader, "_no_split_modules", None) or ()  # transformers' own list
        return [part for part in self._reader.modules() if type(part).__name__ in names]

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.embedding_width

    def forward(self, batch: TokenBatch, side: Side) -> Tensor:
        framed = self.framing.frame_ids(batch, side)
        chunk = self.chunk if torch.is_grad_enabled() else fastest_chunk(framed, self.chunk, self._reader.dtype)
        if chunk is None or len(batch) <= chunk:
            return self._embed(framed)
        return embed_in_chunks(self._embed, framed, chunk)

    def embed_batch(self, texts: list[str], side: Side, device: torch.device) -> Tensor:
        rows: Any = self.framing.frame_texts(texts, side, self.max_tokens)
        return self._embed(pad_tokens(rows, self.framing.pad_id).to(device))

    def _embed(self, batch: TokenBatch) -> Tensor:
        output = self._reader(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long())
        hidden_BTD = output.last_hidden_state
        hidden_BTD = hidden_BTD if hidden_BTD.dtype == torch.float64 else hidden_BTD.float()
        pooled_BD = pool(hidden_BTD, batch.mask_BT, self.pooling)
        return F.normalize(self.layers(pooled_BD), dim=1)

    def weights(self) -> dict[str, Tensor]:
        """Those of the model with merged adapters, which `save` writes."""
        if not self.has_adapter:
            return self.state_dict()
        models = nn.ModuleDict({"model": adapters.merged(self.model), "layers": self.layers})
        return models.state_dict()

    def settings(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in SETTINGS} | {"layers": [str(layer) for layer in self.layers]}
        direction = getattr(self._reader.config, "is_causal", None)  # set by `bidirectional`, and kept in the folder
        return found if direction is None else found | {"is_causal": direction}

    def save(self, folder: Path) -> None:
        """Write a folder that `open`, transformers and sentence-transformers can open. Adapters are merged,
        and also written by themselves.

        For an encoder–decoder model, sentence-transformers would use the decoder's output, so its files are left out.
        """
        model = adapters.merged(self.model) if self.has_adapter else self.model
        model.save_pretrained(folder)
        if self.has_adapter:
            self.model.save_pretrained(folder / adapters.FOLDER)
        self.own_tokenizer.save_pretrained(folder)
        if not self.has_decoder:
            framing = self.framing
            lengths = {side: framing.length(side, self.max_tokens) for side in framing.prefixes}
            st_folder.write(folder, self.pooling, list(self.layers), framing.prefixes, lengths, self.hidden_width,
                            special_tokens_are_text=not framing.has_special_prefix)  # fmt: skip
        write_json(folder / "encoder.json", {"kind": "hf"} | self.settings())

    @classmethod
    def open(cls, folder: Path) -> "HFEncoder":
        """The encoder that `save` wrote."""
        settings = json.loads((folder / "encoder.json").read_text())
        return cls(
            name=str(folder),
            **{name: settings[name] for name in SETTINGS},
            dtype="float32",
            dropout=None,
            gradient_checkpointing=False,
            chunk=None,
            trust_remote_code=False,
            attention="auto",
            bidirectional=None,
            compile=False,
            lora={"rank": 0, "alpha": 1, "dropout": 0.0, "targets": None},
        )


def _check_values(pooling: str, max_tokens: int | None, dtype: str) -> torch.dtype:
    require(pooling in ("auto", *POOLINGS), "encoder.pooling", pooling, f"choose auto, {', '.join(POOLINGS)}")
    require(max_tokens is None or max_tokens > 0, "encoder.max_tokens", max_tokens, "null, or at least 1 token")
    weight_type = getattr(torch, dtype, None)
    if not isinstance(weight_type, torch.dtype) or not weight_type.is_floating_point:
        raise ConfigError("encoder.dtype", dtype, "a torch type, e.g. float32 or bfloat16")
    return weight_type


def _load(source: Pretrained, config: Any, dtype: Any) -> tuple[Any, bool]:
    """(the model, whether it has an unused decoder). Only weights that embeddings depend on are trained.

    A trainable weight without a gradient would break DistributedDataParallel, e.g. the pooler of BERT-like models. The
    pooler is left out if the class allows this; otherwise it is frozen.
    """
    own_class = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    loader, model_class = (
        (AutoModelForTextEncoding, own_class) if own_class else (AutoModel, MODEL_MAPPING.get(type(config), None))
    )
    takes: Any = inspect.signature(model_class).parameters if inspect.isclass(model_class) else {}
    options = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
    model = source.model(loader, dtype, ignore_missing=UNUSED, **options)
    has_decoder = own_class is None and bool(getattr(config, "is_encoder_decoder", False))
    if has_decoder:
        model.requires_grad_(False)
        model.get_encoder().requires_grad_(True)
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler.requires_grad_(False)
    return model, has_decoder


def _first(*values: str | None) -> str:
    return next(value for value in values if value is not None)
