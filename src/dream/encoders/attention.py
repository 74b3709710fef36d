"""How a transformer computes attention, and in which direction it reads."""

from importlib.util import find_spec
from typing import Any

import torch

from dream.utils.errors import ConfigError, require
from dream.utils.model_probe import sees_later_tokens

ATTENTIONS = ("auto", "sdpa", "flash_attention_2", "eager")
FLASH = "flash_attention_2"


def choose_attention(model: Any, choice: str) -> None:
    """Set the implementation of attention, in place. `auto` keeps the one that transformers has chosen.

    Raises:
        ConfigError: this machine or this model does not have it.
    """
    key = "encoder.attention"
    require(choice in ATTENTIONS, key, choice, f"choose {', '.join(ATTENTIONS)}")
    if choice == "auto":
        return
    if choice == FLASH:
        require(torch.cuda.is_available(), key, choice, "needs a CUDA GPU; choose sdpa")
        require(
            find_spec("flash_attn") is not None, key, choice, "needs the package flash_attn: pip install flash-attn"
        )
    try:
        model.set_attn_implementation(choice)
    except (ValueError, ImportError) as error:
        raise ConfigError(key, choice, f"{' '.join(str(error).split())[:200]}; choose auto") from error
    chosen = model.config._attn_implementation
    require(chosen == choice, key, choice, f"{type(model).__name__} only has {chosen}; choose auto")


def choose_direction(model: Any, bidirectional: bool | None) -> None:
    """Let each token read the whole text, or only the text before it, in place. None keeps what the model does.

    The choice is part of the model's config, so transformers 5 and sentence-transformers follow it, too.

    Raises:
        ConfigError: the model has no such choice.
    """
    if bidirectional is None:
        return
    model.config.is_causal = not bidirectional
    remedy = f"{type(model).__name__} reads in one direction only; choose null"
    require(sees_later_tokens(model) == bidirectional, "encoder.bidirectional", bidirectional, remedy)
