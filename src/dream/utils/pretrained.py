"""Loads models and tokenizers of transformers from a folder or the hub. Errors are reported in one line.

Loaders raise many kinds of errors, some only after minutes of other work. This file therefore begins with cheap checks:
they read configs and the headers of weight files, not the weights.
"""

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file, logging

from dream.utils.errors import ConfigError, DreamError, require

logging.disable_progress_bar()  # weights are read and written quickly, so a bar for each file is not useful

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TEXT_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken")  # configs and vocabularies
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
REMEDY = "check that the folder is complete, or download the model again"


class Pretrained:
    """One model that a config names.

    Args:
        key: the config key, for messages, e.g. `encoder.name`.
        name: a folder (`~` is expanded) or a hub name.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ConfigError: the model does not exist. Methods raise it if a part of the model cannot be loaded.

    Example:
        >>> source = Pretrained("scorer.name", "~/models/my-gpt", trust_remote_code=False)
        >>> tokenizer, config = source.tokenizer(), source.config()
    """

    def __init__(self, key: str, name: str, trust_remote_code: bool) -> None:
        require(bool(name), key, name, "a hub name or a local folder, e.g. intfloat/e5-small-v2")
        path = Path(name).expanduser()
        self.key, self.trust_remote_code = key, trust_remote_code
        self.name = str(path) if path.is_dir() or str(name).startswith("~") else str(name)
        self.subfolder = ""  # subfolder of the transformer in the model's folder
        require(not path.is_file(), key, name, "is a file; give the folder that contains config.json and the weights")
        self.folder = path if path.is_dir() else self._cached_snapshot()

    def file(self, name: str) -> Path | None:
        """A file of the model, relative to its folder; downloaded if it is not cached. None if it does not exist."""
        if Path(self.name).is_dir():
            found = Path(self.name) / name
            return found if found.is_file() else None
        with self.loading():
            path = cached_file(
                self.name,
                name,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        return Path(path) if path else None

    def read_json(self, name: str) -> Any:
        """Content of a JSON file of the model. An empty dictionary if the file does not exist."""
        file = self.file(name)
        if file is None:
            return {}
        self._refuse_pointer(file)
        with self.loading():
            return json.loads(file.read_text(encoding="utf-8"))

    def refuse(self, reason: str, remedy: str = REMEDY) -> ConfigError:
        """The error with key, model, reason and remedy."""
        return ConfigError(self.key, self.name, f"{reason}; {remedy}")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Turn any error of a loader into a ConfigError with one line."""
        try:
            yield
        except DreamError:
            raise
        except Exception as error:  # loaders raise errors of many libraries, which share no base class
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.refuse(f"cannot be loaded: {reason}", self._remedy(error)) from error

    def _remedy(self, error: Exception) -> str:
        if "trust_remote_code" in str(error):
            return f"set {self.key.rpartition('.')[0]}.trust_remote_code=true only if you trust the model's Python code"
        if isinstance(error, ImportError):
            return "install the library that it names"
        return REMEDY

    def config(self) -> Any:
        """The model's config. Also checks the files next to it."""
        self._check_files()
        with self.loading():
            config = AutoConfig.from_pretrained(
                self.name, subfolder=self.subfolder, trust_remote_code=self.trust_remote_code
            )
        quantized = getattr(config, "quantization_config", None)
        if quantized:
            method = quantized.get("quant_method") if isinstance(quantized, dict) else type(quantized).__name__
            raise self.refuse(f"its weights are quantised ({method}), which is not supported",
                              "choose the model in float32 or bfloat16")  # fmt: skip
        return config

    def tokenizer(self) -> Any:
        """The model's tokenizer. It must be a fast one, because the store needs the position of each token."""
        with self.loading():
            tokenizer = AutoTokenizer.from_pretrained(
                self.name, subfolder=self.subfolder, trust_remote_code=self.trust_remote_code
            )
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise self.refuse("has no fast tokenizer", "convert it to a tokenizer.json")
        ordinary = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        if not ordinary:  # transformers creates an empty tokenizer if it finds no vocabulary
            raise self.refuse("has no tokenizer files", "copy tokenizer.json, or the vocabulary, into the folder")
        return tokenizer

    def require_rows(self, tokenizer: Any, rows: int, used: Iterable[int] = ()) -> None:
        """Raise ConfigError if the tokenizer has a token id without an embedding in the model.

        Special tokens count only if they are in `used`, because texts do not contain the others.
        """
        special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        entries = 1 + max(set(tokenizer.get_vocab().values()) - special | set(used))
        if entries > rows:
            raise self.refuse(f"its tokenizer has {entries} entries, but the model has embeddings for {rows}",
                              "use the tokenizer that it was trained with, or save it once more after "
                              "model.resize_token_embeddings(len(tokenizer))")  # fmt: skip

    def model(self, loader: Any, dtype: Any, ignore_missing: tuple[str, ...] = (), **options: Any) -> Any:
        """Load the weights.

        Args:
            loader: a class with `from_pretrained`.
            dtype: torch type of the weights.
            ignore_missing: prefixes of the names of weights that may be missing in the file.
            options: further keyword arguments of the loader.
        """
        with self.loading(), _quiet():
            model, info = loader.from_pretrained(
                self.name,
                dtype=dtype,
                subfolder=self.subfolder,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **options,
            )
        parameters = {name for name, _ in model.named_parameters()}
        missing = sorted(name for name in parameters & set(info["missing_keys"]) if not name.startswith(ignore_missing))
        if missing:  # transformers would initialise them randomly and only warn
            kind = type(model).__name__
            raise self.refuse(f"{len(missing)} weights of {kind} are missing, e.g. {missing[0]}",
                              "it is another kind of model, or not complete; choose another one")  # fmt: skip
        return model

    def check_weights(self, file: Path) -> None:
        """Raise ConfigError if a weight file is missing, truncated or a Git LFS pointer."""
        if not file.is_file():
            raise self.refuse(f"{file.name} is missing")
        self._refuse_pointer(file)
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise self.refuse(f"{file.name} is damaged ({' '.join(str(error).split())})") from error
        elif file.read_bytes()[:2] == b"PK" and not zipfile.is_zipfile(file):
            raise self.refuse(f"{file.name} is damaged (cut short)")

    def _check_files(self) -> None:
        if self.folder is None:
            return  # a hub name: the files are downloaded later
        folder = self.folder / self.subfolder
        for pattern in TEXT_FILES:
            for file in folder.glob(pattern):
                self._refuse_pointer(file)
        if not (folder / "config.json").is_file():
            raise self.refuse("has no config.json", "give the folder that save_pretrained wrote")
        for file in self._weight_files(folder):
            self.check_weights(file)

    def _weight_files(self, folder: Path) -> list[Path]:
        """The files that transformers would load, in its order of preference."""
        file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if file is None and (folder / "adapter_config.json").is_file():
            raise self.refuse("is an adapter", "merge it into its base model and save that")
        if file is None:
            raise self.refuse("holds no weights (model.safetensors or pytorch_model.bin)")
        if file.suffix != ".json":
            return [file]
        with self.loading():
            return [folder / name for name in sorted(set(json.loads(file.read_text())["weight_map"].values()))]

    def _refuse_pointer(self, file: Path) -> None:
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise self.refuse(f"{file.name} is a Git LFS pointer, not the file itself",
                                  "run git lfs pull in that folder, or download the model again")  # fmt: skip

    def _cached_snapshot(self) -> Path | None:
        """Offline, the cached folder of a hub name; online, None. Raises ConfigError if it is not a hub name."""
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise self.refuse(
                "cannot be loaded: neither a folder nor a hub name (owner/model)", "check the path"
            ) from error
        if not constants.HF_HUB_OFFLINE:
            return None
        try:
            return Path(snapshot_download(self.name, local_files_only=True))
        except Exception as error:
            reason = "cannot be loaded: neither a folder nor, offline (HF_HUB_OFFLINE), a hub name in the cache"
            raise self.refuse(reason, "check the path, or download the model first") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off transformers' report on missing and unused weights. `Pretrained.model` checks missing weights."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
