"""Finds the maximum number of tokens that a transformers model reads, by one forward of a few tokens.

A config only contains the length of the position table. Some families do not use its first rows: RoBERTa and MPNet
count positions from `pad_token_id + 1`, OPT and BART from 2. The rows that a short forward reads show the first
position.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PROBE_TOKENS = 5
LENGTH_KEYS = ("max_position_embeddings", "max_seq_len")  # most configs; MPT


class _PositionLookups(TorchFunctionMode):
    """Records lookups of consecutive rows. They show the number of tokens that a position table allows."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.embedding:
            names = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self._record(names["input"], names["weight"])
        return func(*args, **(kwargs or {}))

    def _record(self, index: Tensor, weight: Tensor) -> None:
        """Only absolute positions match: relative ones have a 2-d index, and token ids of the probe are all equal."""
        one_sequence = index.dim() == 1 or (index.dim() == 2 and len(index) == 1)
        first = index.reshape(-1)[:PROBE_TOKENS].tolist() if one_sequence else []
        if len(first) == PROBE_TOKENS and first == list(range(first[0], first[0] + PROBE_TOKENS)):
            self.limits.append(len(weight) - first[0])


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Inside, a 16-bit model computes in float32: each module has float32 copies of its weights during its forward.

    So no more than the copies of one module are in memory.
    """
    kept: dict[torch.nn.Module, list[Tensor]] = {}

    def expand(module: torch.nn.Module, _: Any) -> None:
        kept[module] = [weight.data for weight in module.parameters(recurse=False)]
        for weight in module.parameters(recurse=False):
            weight.data = weight.data.float()

    def restore(module: torch.nn.Module, *_: Any) -> None:
        for weight, data in zip(module.parameters(recurse=False), kept.pop(module, []), strict=False):
            weight.data = data

    narrow = [module for module in model.modules()
              if any(weight.dtype in (torch.bfloat16, torch.float16) for weight in module.parameters(recurse=False))
              ]  # fmt: skip
    hooks = [module.register_forward_pre_hook(expand) for module in narrow]
    hooks += [module.register_forward_hook(restore, always_call=True) for module in narrow]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def probe(model: Any) -> tuple[int | None, Any]:
    """Run a model in eval mode on a few tokens.

    Args:
        model: a model with the inputs `input_ids` and `attention_mask`.

    Returns:
        The maximum number of tokens (None if there is no limit), and the output of the forward.
    """
    was_training = model.training
    model.eval()
    ids_1T = torch.full((1, PROBE_TOKENS), _ordinary_id(model), device=next(model.parameters()).device)
    with _PositionLookups() as lookups:
        output = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
    model.train(was_training)
    limits = [*lookups.limits, *_limits_of_config(model)]
    return (min(limits) if limits else None), output


@torch.no_grad()
def sees_later_tokens(model: Any) -> bool:
    """Whether the first hidden state depends on the last token. False for a model that reads from left to right."""
    was_training = model.training
    model.eval()
    ordinary = _ordinary_id(model)
    ids_BT = torch.full((2, PROBE_TOKENS), ordinary, device=next(model.parameters()).device)
    ids_BT[1, -1] = ordinary - 1 if ordinary else 1
    one_TD, other_TD = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).last_hidden_state
    model.train(was_training)
    return not torch.equal(one_TD[0], other_TD[0])


def _limits_of_config(model: Any) -> list[int]:
    config = model.config.get_text_config()
    values = [getattr(config, key, None) for key in LENGTH_KEYS]
    return [value for value in values if isinstance(value, int) and value > 0]  # XLNet says -1 for no limit


def _ordinary_id(model: Any) -> int:
    """A token id that is not a special token. Some models give special tokens no position."""
    config = model.config.get_text_config()
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "mask")}
    flat = {token for value in special for token in (value if isinstance(value, list) else [value])}
    rows = len(model.get_input_embeddings().weight)
    return next((token for token in range(rows - 1, -1, -1) if token not in flat), 0)
