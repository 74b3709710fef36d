"""Attention of a frozen model with something put into it, through transformers' own extension point.

Every model that takes its attention from `AttentionInterface` works unpatched: `attend`, a keyword argument of its
forward, reaches the function registered here in every layer and takes its place. One sequence at a time.

Shapes: H heads, R rows (tokens that look), T tokens that are looked at, K passages, U texts, D width of a head.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dream.utils.errors import require

NAME = "dream"
Mass = Literal["keep", "full"]
Heads = Mapping[int, Sequence[int]]  # layer → heads


class Attend(Protocol):
    """Stands for a layer's attention: q, k, v (1, heads, tokens, D) → (1, R, H, D)."""

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor: ...


def _registered(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
                attend: Attend, **kwargs: Any) -> tuple[Tensor, None]:  # fmt: skip
    return attend(module, query, key, value, attention_mask, **kwargs), None


AttentionInterface.register(NAME, _registered)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def injectable(model: Any) -> Iterator[None]:
    """Within, the model's forward wants `attend`. ConfigError where transformers offers no way into this model."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        family = model.config.model_type
        require(model.config._attn_implementation == NAME, "scorer", family, "nothing can be put into the attention of "
                "this kind of model; take one of the Llama, Qwen, Mistral, Gemma or GPT-NeoX kind")  # fmt: skip
        yield
    finally:
        model.set_attn_implementation(before)


def reweigh(attention_HRT: Tensor, owner_T: Tensor, weights_K: Tensor, mass: Mass) -> Tensor:
    """a'_tj = M_t · w_i · a_tj / Σ_{j' of passage i} a_tj': the head decides within a passage, weights between them.

    `owner_T` is the passage of each token, -1 outside all of them, where attention stays as it is. M_t is the row's
    attention on all passages (`keep`) or 1 (`full`). `weights_K` may also be weights_HRK. Source: DREAM (Tang & Yang,
    arXiv 2606.24667), which leaves `mass` open.
    """
    passages = weights_K.shape[-1]
    owns_TK = (owner_T[:, None] == torch.arange(passages, device=owner_T.device)).to(attention_HRT.dtype)
    mass_HRK = attention_HRT @ owns_TK
    total_HR1 = mass_HRK.sum(-1, keepdim=True) if mass == "keep" else 1.0
    # A passage that a row cannot see (behind a sliding window) has nothing to share out; its weight is lost there.
    seen_HRK = mass_HRK > torch.finfo(attention_HRT.dtype).tiny
    factor_HRK = torch.where(seen_HRK, total_HR1 * weights_K / mass_HRK.masked_fill(~seen_HRK, 1.0), 0.0)
    return attention_HRT * (factor_HRK @ owns_TK.T + (owner_T < 0))


class WeightedAttention:
    """Reweighs the passages in `heads`; other heads and layers attend as ever."""

    def __init__(self, owner_T: Tensor, weights_K: Tensor, heads: Heads, mass: Mass) -> None:
        self.owner_T, self.weights_K, self.heads, self.mass = owner_T, weights_K, heads, mass

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        out = plain(module, query, key, value, mask, **kwargs)
        heads = torch.tensor(self.heads.get(module.layer_idx, ()), dtype=torch.int64, device=query.device)
        if not len(heads):
            return out
        groups = query.shape[1] // key.shape[1]
        attention_HRT = probabilities(query[0, heads], key[0, heads // groups], mask, **kwargs)
        owner_T = owners(self.owner_T, *attention_HRT.shape[1:])
        attention_HRT = reweigh(attention_HRT, owner_T, self.weights_K.to(attention_HRT.dtype), self.mass)
        chosen_HRD = attention_HRT.to(value.dtype) @ value[0, heads // groups]
        return out.index_copy(2, heads, chosen_HRD.transpose(0, 1)[None])


class RecordedAttention:
    """Attends as ever, and keeps every head's attention on each passage, mean over the rows: mass_HK by layer."""

    def __init__(self, owner_T: Tensor, passages: int) -> None:
        self.owner_T, self.passages = owner_T, passages
        self.mass_of_layer: dict[int, Tensor] = {}

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        attention_HRT = probabilities(query[0], key[0].repeat_interleave(groups, 0), mask, **kwargs)
        owner_T = owners(self.owner_T, *attention_HRT.shape[1:])
        inside = (owner_T >= 0).nonzero()[:, 0]
        mass_HK = attention_HRT.new_zeros(len(attention_HRT), self.passages)
        mass_HK.index_add_(1, owner_T[inside], attention_HRT.mean(1)[:, inside])
        self.mass_of_layer[module.layer_idx] = mass_HK
        return plain(module, query, key, value, mask, **kwargs)


class InBatchAttention:
    """h = s + Σ_u w_u · b_u: beside its own text (s), every row attends to U others (b_u), which are weighed.

    `texts_of_layer` holds the others' keys and values (U, heads, T, D), `mask_UT` which of their tokens there are. With
    `value_norm`, b_u is divided by the norm of the values it attends to, so that no token counts by its length. Source:
    Revela (arXiv 2506.16552), whose language model learns to live with it; here it is frozen.
    """

    def __init__(
        self, texts_of_layer: Mapping[int, tuple[Tensor, Tensor]], mask_UT: Tensor, weights_U: Tensor, value_norm: bool
    ) -> None:
        self.texts_of_layer, self.mask_UT = texts_of_layer, mask_UT
        self.weights_U, self.value_norm = weights_U, value_norm

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        out = plain(module, query, key, value, mask, **kwargs)
        key_UHTD, value_UHTD = self.texts_of_layer[module.layer_idx]
        groups = query.shape[1] // key.shape[1]
        key_UHTD, value_UHTD = (part.repeat_interleave(groups, 1) for part in (key_UHTD, value_UHTD))
        attention_UHRT = probabilities(query[0], key_UHTD, self.mask_UT[:, None, None], **kwargs).to(value.dtype)
        read_UHRD = attention_UHRT @ value_UHTD
        if self.value_norm:
            norm_UHRT = attention_UHRT @ value_UHTD.norm(dim=-1, keepdim=True)
            read_UHRD = read_UHRD / norm_UHRT.clamp_min(torch.finfo(torch.float32).eps)
        others_HRD = (self.weights_U.to(value.dtype)[:, None, None, None] * read_UHRD).sum(0)
        return out + others_HRD.transpose(0, 1)[None]


def owners(owner_T: Tensor, rows: int, tokens: int) -> Tensor:
    """The passage of each of the `tokens` that a layer keeps: the newest ones, the `rows` themselves included."""
    return torch.nn.functional.pad(owner_T, (0, rows), value=-1)[-tokens:]


def plain(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *,
          softcap: float | None = None, **kwargs: Any) -> Tensor:  # fmt: skip
    """The layer's own attention: torch's kernel, except where scores are capped (Gemma 2), which it cannot do."""
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    groups = query.shape[1] // key.shape[1]
    key, value = key[0].repeat_interleave(groups, 0), value[0].repeat_interleave(groups, 0)
    attention_HRT = probabilities(query[0], key, mask, softcap=softcap, **kwargs)
    return (attention_HRT.to(value.dtype) @ value).transpose(0, 1)[None]


def probabilities(query: Tensor, key: Tensor, mask: Tensor | None, *, scaling: float | None = None,
                  softcap: float | None = None, **_: Any) -> Tensor:  # fmt: skip
    """Softmax of the scores over the last axis, in float32 (float64 for such models)."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)) * scaling
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:  # transformers' way to say: causal, all there
        rows, tokens = scores.shape[-2:]
        mask = torch.ones(rows, tokens, dtype=torch.bool, device=scores.device).tril(tokens - rows)
    else:
        mask = mask[0] if mask.ndim > scores.ndim else mask
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)
