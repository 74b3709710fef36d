"""Low-rank adapters by the library peft: W + (alpha / rank) · B A, where only A and B are trained (Hu et al. 2021)."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from dream.utils.errors import ConfigError, require, require_installed

ALL_LINEAR = "all-linear"
FOLDER = "adapter"  # of the adapters by themselves, in the folder of a saved encoder
ADAPTER = ".lora_"  # in the name of every weight of an adapter


def check_values(lora: Mapping[str, Any]) -> None:
    """Raise ConfigError if a value is impossible, or if peft is missing."""
    rank, dropout = lora["rank"], lora["dropout"]
    require(isinstance(rank, int) and rank >= 0, "encoder.lora.rank", rank, "0 for no adapter, or e.g. 16")
    require(0 <= dropout < 1, "encoder.lora.dropout", dropout, "at least 0 and below 1")
    require(not rank or lora["alpha"] > 0, "encoder.lora.alpha", lora["alpha"], "above 0, e.g. twice the rank")
    if rank:
        require_installed(["peft"], "lora", "encoder.lora.rank", rank)


def add_adapter(model: Any, lora: Mapping[str, Any]) -> Any:
    """The model with adapters, its own weights frozen.

    Args:
        model: a transformers model.
        lora: rank, alpha, dropout and targets. `targets` are names of linear layers, or `all-linear`; None: those that
            peft names for this family, which are the projections of queries and values, or all linear layers of a
            family that it does not know.

    Raises:
        ConfigError: the model has no layer with these names.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    targets = lora["targets"]
    if targets is None:
        targets = KNOWN.get(model.config.model_type, ALL_LINEAR)
    names = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=names,
                        task_type="FEATURE_EXTRACTION")  # fmt: skip
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        found = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        remedy = f"choose from {', '.join(sorted(found))}, or {ALL_LINEAR}"
        raise ConfigError("encoder.lora.targets", targets, remedy) from error


def merged(model: Any) -> Any:
    """A copy of the model without adapters, their product added to its weights; float32, on the CPU.

    Always on the same processor, so that its hash is the same during training and when the encoder is opened again. A
    GPU needs no memory for the copy.
    """
    on_cpu: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to("cpu", copy=True), weight.requires_grad)
        for weight in model.parameters()
    }
    on_cpu |= {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in model.buffers()}
    return copy.deepcopy(model, on_cpu).float().merge_and_unload()


def save_only_adapter(encoder: nn.Module, part: str) -> None:
    """Let `encoder.state_dict()` leave out the frozen weights of its module `part`, and load without them."""

    def is_frozen(name: str, prefix: str) -> bool:
        return name.startswith(f"{prefix}{part}.") and ADAPTER not in name

    def leave_out(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name in [name for name in state if is_frozen(name, prefix)]:
            del state[name]

    def accept(_: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [name for name in keys.missing_keys if f"{part}." not in name or ADAPTER in name]

    encoder.register_state_dict_post_hook(leave_out)
    encoder.register_load_state_dict_post_hook(accept)
