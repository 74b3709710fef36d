"""A folder that `SentenceTransformer(folder)` loads. A static encoder becomes StaticEmbedding and Normalize."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from dream.encoders import lora, st_folder
from dream.encoders.base import Side
from dream.encoders.hf import HFEncoder
from dream.encoders.static import StaticEncoder
from dream.export.base import Embed, Format, Job
from dream.export.check import compare_vectors
from dream.export.tokens import plain_tokenizer, weighted_table
from dream.runs.layout import ENCODER
from dream.utils.errors import ConfigError, require

LOWEST_COSINE = 0.99999
ADAPTER_CONFIG = "adapter_config.json"


class SentenceTransformersFormat(Format):
    """to=sentence_transformers"""

    packages = ("sentence_transformers",)
    extra = "export"
    adapters = True

    def write(self, job: Job, folder: Path) -> None:
        encoder = job.encoder
        if isinstance(encoder, StaticEncoder):
            require(job.adapter == "merged", "adapter", job.adapter, "a static encoder has no adapter")
            write_static(encoder, folder)
            return
        if encoder.has_decoder:
            raise ConfigError("to", "sentence_transformers", "this library would take the embedding from the decoder, "
                              "but the run takes it from the encoder; to=onnx writes the encoder")  # fmt: skip
        write_transformer(encoder, folder)
        if job.adapter == "kept":
            keep_adapter(job.folder / ENCODER / lora.FOLDER, folder)

    def check(self, job: Job, folder: Path) -> dict[str, Any]:
        return compare_vectors(job, open_folder(folder), LOWEST_COSINE)


def write_static(encoder: StaticEncoder, folder: Path) -> None:
    """The library averages rows of one table, so weights are multiplied into the vectors. The length is not affected:
    Normalize follows."""
    tokenizer = plain_tokenizer(encoder)
    tokenizer.save(str(folder / "tokenizer.json"))
    table_VD = weighted_table(encoder, tokenizer)
    save_file({"embedding.weight": table_VD.contiguous()}, folder / "model.safetensors", metadata={"format": "pt"})
    st_folder.write_modules(folder, [("", "StaticEmbedding"), ("1_Normalize", "Normalize")])
    st_folder.write_prompts(folder, {"query": "", "passage": ""})


def write_transformer(encoder: HFEncoder, folder: Path) -> None:
    """The folder that a run keeps, without this project's own files."""
    encoder.save(folder)
    (folder / "encoder.json").unlink()
    shutil.rmtree(folder / lora.FOLDER, ignore_errors=True)


def keep_adapter(adapter: Path, folder: Path) -> None:
    """Replace the merged weights by the adapter of a run. The adapter's config names the base model.

    Raises:
        ConfigError: the run has no adapter.
    """
    require((adapter / ADAPTER_CONFIG).is_file(), "adapter", "kept", "this run has no adapter: encoder.lora.rank was 0")
    for file in [*folder.glob("model*.safetensors*"), folder / "config.json"]:
        file.unlink()
    shutil.copy(adapter / ADAPTER_CONFIG, folder)
    shutil.copy(adapter / "adapter_model.safetensors", folder)


def open_folder(folder: Path) -> Embed:
    """A function that embeds with the library."""
    from sentence_transformers import SentenceTransformer

    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # it logs each model that it loads
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def embed(texts: list[str], side: Side) -> np.ndarray:
        encode = model.encode_query if side == "query" else model.encode_document
        return np.asarray(encode(texts, convert_to_numpy=True, show_progress_bar=False), dtype=np.float32)

    return embed
