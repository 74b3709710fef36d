"""Scorers from GGUF files, the format of llama.cpp. A file is converted once into a folder of transformers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dream.corpora.base import Corpus
from dream.scorers.hf import HFScorer, why_not_causal
from dream.utils.atomic_io import FINGERPRINT_CHARACTERS, checksum
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import ConfigError, DreamError, require, require_installed
from dream.utils.logging import get_logger

log = get_logger(__name__)

PACKAGES = ("gguf", "accelerate")  # what transformers needs to read GGUF


class GGUFScorer(HFScorer):
    """A causal language model in a GGUF file. It is converted at first use and cached in `data_dir`.

    Quantised weights are expanded. The cache is named after the checksum of the file, so a changed file is converted
    again. GGUF files seldom name a licence: see where the file comes from.

    Args:
        corpus: not used. All scorers have this argument.
        path: a `.gguf` file.
        scoring: the fields of `Scoring`.
        data_dir: the converted model is in `models/` there.
        cache_megabytes: size of the cache of log-likelihoods; 0 for none.

    Raises:
        ConfigError: the file is missing, damaged or no causal language model, or a package is missing.
    """

    def __init__(
        self, corpus: Corpus | None, path: str, scoring: Mapping[str, Any], data_dir: str, cache_megabytes: int
    ) -> None:
        file = Path(path).expanduser()
        require(file.is_file(), "scorer.path", path, "there is no such file; give a .gguf file")
        folder = Path(data_dir) / "models" / f"{file.stem}-{checksum(file)[:FINGERPRINT_CHARACTERS]}"
        if not verify_or_discard(folder):
            log.info(f"Converting {file} once; the model is then cached in {folder}")
            with new_directory(folder) as unfinished:
                convert(file, unfinished)
        super().__init__(corpus, str(folder), scoring, trust_remote_code=False, cache_megabytes=cache_megabytes)


def convert(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into an existing folder, for `from_pretrained`.

    The weights are saved in bfloat16. Quantised weights of up to 8 bits lose less by this than by their quantisation.

    Raises:
        ConfigError: see `GGUFScorer`.
    """
    require_installed(PACKAGES, "gguf", "scorer.path", file)
    config = _read(file, AutoConfig.from_pretrained)
    reason = why_not_causal(config)
    require(not reason, "scorer.path", file, f"{reason}; choose a decoder")
    model = _read(file, AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    tokenizer = _read(file, AutoTokenizer.from_pretrained)
    # The weights are no longer quantised, but the loader leaves these marks, with which the model cannot be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(file: Path, loader: Callable[..., Any], **options: Any) -> Any:
    try:
        return loader(file.parent, gguf_file=file.name, **options)
    except DreamError:
        raise
    except Exception as error:  # the loaders of many libraries, whose errors share no base class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError("scorer.path", file, f"cannot be read as GGUF: {reason}; download the file again, or choose "
                          "a model of another family") from error  # fmt: skip
