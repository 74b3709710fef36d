"""Reads and writes the settings and layers that a sentence-transformers folder adds to the transformer.

`modules.json` lists the modules in order: a Transformer, a Pooling, then any number of Dense and Normalize. The format
is taken from the library's documentation and from published models. Older versions keep the transformer in
`0_Transformer`, and the file of its settings is named after its family.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dream.encoders.pooling import ACTIVATIONS, Dense, Normalize
from dream.utils.atomic_io import write_json
from dream.utils.pretrained import Pretrained

LIBRARY = "sentence_transformers.models"
MODULES = "modules.json"
TOKENIZER = "tokenizer_config.json"
SETTINGS = "config_sentence_transformers.json"
FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
# The library's name of each pooling mode → DREAM's name.
POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}
# The library's name of each pooling mode → its key in older folders.
OLD_KEYS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken",
            "max": "pooling_mode_max_tokens", "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
            "weightedmean": "pooling_mode_weightedmean_tokens"}  # fmt: skip
PROMPTS = {"query": ("query",), "passage": ("document", "passage", "corpus")}  # names; the first existing one is used
UNLIMITED = 1_000_000  # tokenizers without a limit give a huge number
ONE_VECTOR = "sentence_embedding"  # the feature that Dense and Normalize read and write
OTHER_MODEL = "choose another model, or its plain transformer folder with encoder.pooling set"


@dataclass
class Published:
    """The settings of a folder, without its transformer. None: the folder does not have this setting."""

    pooling: str | None = None
    layers: list[nn.Module] = field(default_factory=list)
    prefixes: dict[str, str | None] = field(default_factory=lambda: {"query": None, "passage": None})
    max_tokens: int | None = None  # with prefix and special tokens
    lower_case: bool = False
    subfolder: str = ""
    similarity: str | None = None
    normalized: bool = False  # the last module is Normalize; `layers` omits it, because encoders always normalise

    @property
    def found(self) -> bool:
        """Whether it is a sentence-transformers folder."""
        return self.pooling is not None


def read(source: Pretrained) -> Published:
    """Settings and layers of the model; empty if it is a plain transformers folder.

    Raises:
        ConfigError: a module or setting is not supported; the message names it.
    """
    modules = source.read_json(MODULES)
    if not modules:
        return Published()
    with source.loading():
        kinds = [_kind(module["type"]) for module in modules]
        paths = [module["path"] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise source.refuse(f"its modules are {', '.join(kinds)}, not a Transformer and a Pooling first", OTHER_MODEL)
    published = Published(subfolder=paths[0], pooling=_read_pooling(source, paths[1]))
    for kind, path in zip(kinds[2:], paths[2:], strict=True):
        if kind not in ("Dense", "Normalize"):
            raise source.refuse(f"its module {kind} is not supported", OTHER_MODEL)
        _require_one_vector(source, path)
        published.layers.append(_read_dense(source, path) if kind == "Dense" else Normalize())
    published.normalized = bool(published.layers) and isinstance(published.layers[-1], Normalize)
    if published.normalized:
        published.layers.pop()
    _read_length(source, published)
    _read_prompts(source, published)
    return published


def _kind(type_name: str) -> str:
    """Short name of a module of the library. Other code keeps its whole name, which is refused later."""
    return type_name.rpartition(".")[2] if type_name.startswith("sentence_transformers.") else type_name


def _read_pooling(source: Pretrained, path: str) -> str:
    config = source.read_json(f"{path}/config.json")
    modes = config.get("pooling_mode") or [mode for mode, key in OLD_KEYS.items() if config.get(key)] or "mean"
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise source.refuse(
            f"its pooling {' + '.join(modes)} is not supported ({', '.join(POOLINGS)} are)", OTHER_MODEL
        )
    if config.get("include_prompt") is False:
        raise source.refuse("its pooling leaves out the prompt (include_prompt: false), which is not supported",
                            OTHER_MODEL)  # fmt: skip
    return POOLINGS[modes[0]]


def _require_one_vector(source: Pretrained, path: str) -> None:
    config = source.read_json(f"{path}/config.json")
    for key in ("module_input_name", "module_output_name"):
        if (config.get(key) or ONE_VECTOR) != ONE_VECTOR:
            raise source.refuse(f"its module {path} works on {config[key]}, which is not supported", OTHER_MODEL)


def _read_dense(source: Pretrained, path: str) -> Dense:
    config = source.read_json(f"{path}/config.json")
    activation = str(config.get("activation_function") or "torch.nn.Tanh")  # Tanh is the library's default
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise source.refuse(f"the activation {activation} of {path} is not supported", OTHER_MODEL)
    if config.get("use_residual"):
        raise source.refuse(f"the residual connection of {path} is not supported", OTHER_MODEL)
    file = source.file(f"{path}/model.safetensors") or source.file(f"{path}/pytorch_model.bin")
    if file is None:
        raise source.refuse(f"{path} holds no weights")
    source.check_weights(file)
    with source.loading():
        dense = Dense(config["in_features"], config["out_features"], config.get("bias", True), name)
        is_pickle = file.suffix == ".bin"
        weights = torch.load(file, "cpu", weights_only=True) if is_pickle else load_file(file)
        dense.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return dense


def _read_length(source: Pretrained, published: Published) -> None:
    """Read length and case of the text from the transformer's settings, otherwise from its tokenizer."""
    folder = f"{published.subfolder}/" if published.subfolder else ""
    names = (f"{folder}sentence_{family}_config.json" for family in FAMILIES)
    settings: dict[str, Any] = next((found for name in names if (found := source.read_json(name))), {})
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise source.refuse(f"its transformer_task {task} is not supported", OTHER_MODEL)
    length = settings.get("max_seq_length")
    length = length or source.read_json(f"{folder}tokenizer_config.json").get("model_max_length")
    published.max_tokens = int(length) if length and length < UNLIMITED else None
    published.lower_case = bool(settings.get("do_lower_case"))


def _read_prompts(source: Pretrained, published: Published) -> None:
    settings = source.read_json(SETTINGS)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    for side, names in PROMPTS.items():
        name = next((name for name in names if prompts.get(name) is not None), default)
        published.prefixes[side] = prompts.get(name)
    published.similarity = settings.get("similarity_fn_name")


def write(
    folder: Path,
    pooling: str,
    layers: list[nn.Module],
    prefixes: dict[str, str],
    lengths: dict[str, int],
    width: int,
    special_tokens_are_text: bool,
) -> None:
    """Write the files that turn a saved transformers folder into a sentence-transformers folder.

    Args:
        folder: contains the transformer and its tokenizer.
        pooling: a value of `POOLINGS`.
        layers: `Dense` and `Normalize`, in order; a last `Normalize` is added.
        prefixes: the prefix of each side.
        lengths: maximum number of tokens of each side, with prefix and special tokens. If they differ, the folder needs
            version 6 of the library.
        width: width of the hidden states.
        special_tokens_are_text: read the spelling of a special token in a text as plain text.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    library_mode = next(name for name, own_name in POOLINGS.items() if own_name == pooling)
    modes = {key: mode == library_mode for mode, key in OLD_KEYS.items()}
    _write_module(folder / "1_Pooling", {"word_embedding_dimension": width, **modes, "include_prompt": True})
    for number, layer in enumerate([*layers, Normalize()], start=2):
        name = type(layer).__name__
        modules.append((f"{number}_{name}", name))
        if isinstance(layer, Dense):
            _write_module(folder / modules[-1][0], _dense_config(layer))
            weights = {f"linear.{key}": value.detach().contiguous() for key, value in layer.linear.named_parameters()}
            save_file(weights, folder / modules[-1][0] / "model.safetensors")
    write_modules(folder, modules)
    write_prompts(folder, prefixes)
    settings: dict[str, Any] = {"max_seq_length": max(lengths.values()), "do_lower_case": False}
    if len(set(lengths.values())) > 1:
        settings |= {"query_length": lengths["query"], "document_length": lengths["passage"]}
    write_json(folder / "sentence_bert_config.json", settings)
    tokenizer = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    # Absolute positions count from the first token of a row, so padding must be last, as in training.
    tokenizer |= {"split_special_tokens": special_tokens_are_text, "padding_side": "right"}
    write_json(folder / TOKENIZER, tokenizer)


def write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    """Write the list of (subfolder, class of the library), and the folder of a Normalize."""
    listing: Any = [
        {"idx": number, "name": str(number), "path": path, "type": f"{LIBRARY}.{name}"}
        for number, (path, name) in enumerate(modules)
    ]
    write_json(folder / MODULES, listing)
    for path, name in modules:
        if name == "Normalize":
            _write_module(folder / path, {})


def write_prompts(folder: Path, prefixes: dict[str, str]) -> None:
    """Write the prompt of each side, and the similarity."""
    prompts = {"query": prefixes["query"], "document": prefixes["passage"]}
    write_json(folder / SETTINGS, {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"})


def _write_module(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)


def _dense_config(layer: Dense) -> dict[str, Any]:
    linear, kind = layer.linear, type(layer.activation)
    return {"in_features": linear.in_features, "out_features": linear.out_features, "bias": linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}"}  # fmt: skip
