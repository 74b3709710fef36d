"""Changes the attention of a frozen model through `AttentionInterface`, the extension point of transformers.

Every model that uses `AttentionInterface` works without patches. Its forward passes the keyword argument `attend` to
the function registered here, which calls it in every layer to compute the attention. Batches have one sequence.

Shapes: H heads, R rows (queries of the attention), T tokens (keys of the attention), K passages, U texts, D width of a
head.
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
    """Computes a layer's attention: query, key, value (1, heads, tokens, D) → (1, R, H, D).

    Args:
        module: the attention layer; `module.layer_idx` is its number.
        query: queries of the rows.
        key: keys of all tokens. It can have fewer heads than `query`.
        value: values of all tokens, with the heads of `key`.
        mask: true or 0 if a row may attend to a token, otherwise false or -inf. None: causal, without padding.
        kwargs: further arguments of the layer, such as `scaling`.
    """

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
    """In this context, the model's forward accepts `attend`.

    Raises:
        ConfigError: this kind of model does not use `AttentionInterface`.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        family = model.config.model_type
        require(model.config._attn_implementation == NAME, "scorer", family, "the attention of this kind of model "
                "cannot be changed; choose a Llama, Qwen, Mistral, Gemma or GPT-NeoX model")  # fmt: skip
        yield
    finally:
        model.set_attn_implementation(before)


def reweigh(attention_HRT: Tensor, owner_T: Tensor, weights_K: Tensor, mass: Mass) -> Tensor:
    """a'_tj = M_t · w_i · a_tj / Σ_{j' in passage i} a_tj' for a token j of passage i; other tokens keep a_tj.

    The head distributes attention within a passage; the weights distribute it between passages.
    Source: DREAM (Tang & Yang, arXiv 2606.24667), which does not define M_t.

    Args:
        attention_HRT: a, the softmax of the attention scores.
        owner_T: passage of each token, -1 outside all passages.
        weights_K: w, the weight of each passage. weights_HRK is also accepted.
        mass: M_t: `keep`, the row's attention to all passages; `full`, 1.
    """
    passages = weights_K.shape[-1]
    owns_TK = (owner_T[:, None] == torch.arange(passages, device=owner_T.device)).to(attention_HRT.dtype)
    mass_HRK = attention_HRT @ owns_TK
    total_HR1 = mass_HRK.sum(-1, keepdim=True) if mass == "keep" else 1.0
    # A sliding window can hide a passage from a row. The row's attention to it is 0 and stays 0, for any weight.
    seen_HRK = mass_HRK > torch.finfo(attention_HRT.dtype).tiny
    factor_HRK = torch.where(seen_HRK, total_HR1 * weights_K / mass_HRK.masked_fill(~seen_HRK, 1.0), 0.0)
    return attention_HRT * (factor_HRK @ owns_TK.T + (owner_T < 0))


class WeightedAttention:
    """Attention in which `heads` weight the passages: see `reweigh`. Other heads and layers are unchanged.

    Args:
        owner_T: passage of each token, -1 outside all passages.
        weights_K: weight of each passage.
        heads: by layer.
        mass: see `reweigh`.
    """

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
    """Unchanged attention that records mass_HK by layer: each head's attention to each passage, mean over the rows.

    Args:
        owner_T: passage of each token, -1 outside all passages.
        passages: K, number of passages.
    """

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
    """Attention h = s + Σ_u w_u · b_u. s is the row's usual attention output, b_u its attention output over text u.

    Source: Revela (arXiv 2506.16552). Its language model is trained with this attention; here it is frozen.

    Args:
        texts_of_layer: keys and values of the texts by layer, of shape (U, heads, T, D).
        mask_UT: true for tokens, false for padding.
        weights_U: w, the weight of each text.
        value_norm: divide b_u by the attention-weighted mean norm of the values of text u.
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
    """Passage of each of the last `tokens` tokens, which a layer with a sliding window keeps. Rows belong to none."""
    return torch.nn.functional.pad(owner_T, (0, rows), value=-1)[-tokens:]


def plain(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *,
          softcap: float | None = None, **kwargs: Any) -> Tensor:  # fmt: skip
    """The model's own attention, by torch's kernel. The kernel does not support capped scores (Gemma 2)."""
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    groups = query.shape[1] // key.shape[1]
    key, value = key[0].repeat_interleave(groups, 0), value[0].repeat_interleave(groups, 0)
    attention_HRT = probabilities(query[0], key, mask, softcap=softcap, **kwargs)
    return (attention_HRT.to(value.dtype) @ value).transpose(0, 1)[None]


def probabilities(query: Tensor, key: Tensor, mask: Tensor | None, *, scaling: float | None = None,
                  softcap: float | None = None, **_: Any) -> Tensor:  # fmt: skip
    """Softmax of the scores over the last axis, in float32, or in float64 if the model is float64."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)) * scaling
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:  # in transformers, None means causal without padding
        rows, tokens = scores.shape[-2:]
        mask = torch.ones(rows, tokens, dtype=torch.bool, device=scores.device).tril(tokens - rows)
    else:
        mask = mask[0] if mask.ndim > scores.ndim else mask
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)
