"""Scores pairs whose sequences begin alike. The shared beginning (usually the passage) is computed once.

A pack is one sequence without padding: M beginnings, then N endings, each of which continues one beginning. Norms and
matrix products, which take most of the time, read the pack as it is. Only the attention needs the structure: a
beginning attends to itself, and an ending attends to its beginning and to itself.

Shapes: M beginnings, N endings (one for each pair), T tokens of the pack, R target tokens, H heads, G heads of keys and
values, D width of a head. Within the attention: B beginnings or endings, Q queries of all heads that share their keys,
K keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from dream.scorers.attention.injection import probabilities
from dream.scorers.compilation import compiled_layers
from dream.scorers.weights import attends_to
from dream.utils.logging import get_logger

log = get_logger(__name__)

NAME = "dream_packed"
ROUND_TO = 8  # tokens: lengths of the padded attention, so that its memory is aligned
CHECK_TOLERANCE = 1e-3  # relative; a model that reads a pack wrongly differs by more than a tenth


@dataclass
class Part:
    """Indices for the attention of the beginnings or of the endings. They are padded with 0.

    Args:
        query_BGQ: rows of the queries, which have shape (T · H, D).
        key_BGK: rows of the keys and values, which have shape (T · G, D).
        mask_B1QK: true if a query attends to a key.
    """

    query_BGQ: Tensor
    key_BGK: Tensor
    mask_B1QK: Tensor


@dataclass
class Pack:
    """The tensors of one forward. Positions of the pack are rows of its T tokens.

    Args:
        ids_1T: token ids.
        places_1T: position of each token in its own sequence.
        rows_R: positions whose logits predict a target token.
        labels_R: the target tokens.
        order_TH: for each head of a token, its row in the results of the attention, (all B, G and Q · D).
        beginnings: they attend to themselves.
        endings: they attend to their beginning and to themselves.
    """

    ids_1T: Tensor
    places_1T: Tensor
    rows_R: Tensor
    labels_R: Tensor
    order_TH: Tensor
    beginnings: Part
    endings: Part

    def to(self, device: torch.device) -> "Pack":
        """The pack on the device."""
        return _to(self, device)


def _to(record: Any, device: torch.device) -> Any:
    values = [getattr(record, field.name) for field in fields(record)]
    return type(record)(*(value.to(device) if isinstance(value, Tensor) else _to(value, device) for value in values))


class PackedAttention:
    """Computes the attention of a pack: see `Attend`. Heads that share keys are rows of one matrix product."""

    def __init__(self, pack: Pack) -> None:
        self.beginnings, self.endings, self.order_TH = pack.beginnings, pack.endings, pack.order_TH

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> Tensor:
        query, key, value = (part[0].transpose(0, 1).flatten(0, 1) for part in (query, key, value))
        read = []
        for part in (self.beginnings, self.endings):
            gathered = query[part.query_BGQ], key[part.key_BGK], value[part.key_BGK]
            read.append(_attend(*gathered, part.mask_B1QK, **kwargs).flatten(0, 2))
        return torch.cat(read)[self.order_TH][None]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float | None = None,
            softcap: float | None = None, **_: Any) -> Tensor:  # fmt: skip
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return probabilities(query, key, mask, scaling=scaling, softcap=softcap).to(value.dtype) @ value


def _registered(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *,
                packed: PackedAttention, **kwargs: Any) -> tuple[Tensor, None]:  # fmt: skip
    return packed(module, query, key, value, attention_mask, **kwargs), None


AttentionInterface.register(NAME, _registered)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # `PackedAttention` has the mask


class Packing:
    """Groups pairs into packs and scores them.

    Args:
        model: a causal language model for which `can_pack` is true.
        compiles: whether to compile the model's layers.

    Example:
        >>> packing = Packing(model, compiles=False)
        >>> for pairs, loglik_P in packing.scores(sequences, targets, shared, by_token=False, token_budget=4096): ...
    """

    def __init__(self, model: Any, compiles: bool) -> None:
        self.model, self.compiles = model, compiles
        config = model.config.get_text_config()
        self.heads = config.num_attention_heads
        self.groups = self.heads // (getattr(config, "num_key_value_heads", None) or self.heads)
        self._chosen = torch.compile(_chosen_loglik, dynamic=True) if compiles else _chosen_loglik

    def scores(self, sequences: list[np.ndarray], targets: list[int], shared: list[int], by_token: bool,
               token_budget: int) -> Iterator[tuple[np.ndarray, Tensor]]:  # fmt: skip
        """Yield (numbers of the pairs, their loglik_P or loglik_PT) of each pack: see `score_sequences`."""
        device, most = self.model.device, max(targets)
        for pairs, pack in self.packs(sequences, shared, targets, token_budget):
            loglik_R = self.score(pack.to(device))
            tokens_P = torch.tensor([targets[pair] for pair in pairs], device=device)
            inside_PT = torch.arange(most, device=device) < tokens_P[:, None]
            loglik_PT = loglik_R.new_zeros(inside_PT.shape).masked_scatter(inside_PT, loglik_R)
            yield pairs, loglik_PT if by_token else loglik_PT.sum(1)

    def packs(
        self, sequences: Sequence[np.ndarray], shared: Sequence[int], targets: Sequence[int], token_budget: int
    ) -> Iterator[tuple[np.ndarray, Pack]]:
        """Yield (numbers of the pairs, their pack). The order of the target tokens is that of the pairs.

        Args:
            sequences: token ids of each pair; the target is at the end.
            shared: number of first tokens of each pair that other pairs may have, too.
            targets: number of target tokens of each pair.
            token_budget: maximum number of tokens of a pack; half of it is the maximum number of target tokens.
        """
        # The token before the target predicts it, so it belongs to the ending.
        cuts = [max(0, min(cut, len(sequence) - target - 1))
                for sequence, cut, target in zip(sequences, shared, targets, strict=True)]  # fmt: skip
        for pairs in _grouped(sequences, cuts, targets, token_budget):
            yield np.array(pairs), _pack([sequences[pair] for pair in pairs], [cuts[pair] for pair in pairs],
                                         [targets[pair] for pair in pairs], self.heads, self.groups)  # fmt: skip

    @torch.no_grad()
    def score(self, pack: Pack) -> Tensor:
        """loglik_R float32 of the target tokens, in nats."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        try:
            with compiled_layers(self.model, self.compiles):
                logits_RV = self.model(input_ids=pack.ids_1T, position_ids=pack.places_1T, logits_to_keep=pack.rows_R,
                                       use_cache=False, packed=PackedAttention(pack)).logits[0]  # fmt: skip
        finally:
            self.model.set_attn_implementation(before)
        return self._chosen(logits_RV, pack.labels_R)


def can_pack(model: Any, longest: int) -> bool:
    """Whether the model scores packs like single sequences. It scores a small pack of random tokens both ways.

    False for models with other attention, convolutions or positions, or with a sliding window shorter than `longest`.

    Args:
        model: a causal language model with float32 or float64 weights.
        longest: maximum number of tokens of a sequence.
    """
    if not attends_to(model, longest):
        return False
    draw, most = np.random.default_rng(0), len(model.get_input_embeddings().weight)
    texts = [draw.integers(most, size=size) for size in (6, 3, 3, 4, 2, 3)]
    sequences = [np.concatenate([texts[pair % 2], texts[2 + pair]])[-longest:] for pair in range(4)]
    targets, shared = (
        [2, 3, 1, 2],
        [len(sequence) - len(text) for sequence, text in zip(sequences, texts[2:], strict=True)],
    )
    try:
        ((pairs, packed_PT),) = Packing(model, compiles=False).scores(sequences, targets, shared, True, 4096)
        expected_PT = torch.stack([_alone(model, sequences[pair], targets[pair], 3) for pair in pairs])
    except Exception as error:  # models of any family; what fails here is scored one by one
        log.debug(f"this model cannot share passages: {error}")
        return False
    return torch.allclose(packed_PT, expected_PT, rtol=CHECK_TOLERANCE, atol=CHECK_TOLERANCE)


@torch.no_grad()
def _alone(model: Any, sequence: np.ndarray, target: int, tokens: int) -> Tensor:
    """loglik_T of the target tokens of one sequence, 0 after the last."""
    ids_1T = torch.from_numpy(sequence)[None].to(model.device)
    logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, -target - 1 : -1]
    return pad(_chosen_loglik(logits_TV, ids_1T[0, -target:]), (0, tokens - target))


def _chosen_loglik(logits_RV: Tensor, labels_R: Tensor) -> Tensor:
    chosen_R = logits_RV.gather(1, labels_R[:, None])[:, 0].float()
    return chosen_R - logits_RV.float().logsumexp(1)


def _grouped(
    sequences: Sequence[np.ndarray], cuts: Sequence[int], targets: Sequence[int], token_budget: int
) -> Iterator[list[int]]:
    """Yield the pairs of each pack: those with one beginning one after another, in the order of first occurrence.

    A group that does not fit into the rest of a pack starts a new one. A pack has at least one pair.
    """
    group_of: dict[bytes, list[int]] = {}
    for pair, (sequence, cut) in enumerate(zip(sequences, cuts, strict=True)):
        group_of.setdefault(sequence[:cut].tobytes(), []).append(pair)
    most_rows = max(1, token_budget // 2)
    pack: list[int] = []
    tokens = rows = 0
    for group in group_of.values():
        cut = cuts[group[0]]
        sizes = [len(sequences[pair]) - 1 - cut for pair in group]
        wanted = sum(targets[pair] for pair in group)
        whole = tokens + cut + sum(sizes) <= token_budget and rows + wanted <= most_rows
        if pack and not whole:
            yield pack
            pack, tokens, rows = [], 0, 0
        tokens += cut
        for pair, size in zip(group, sizes, strict=True):
            if pack and (tokens + size > token_budget or rows + targets[pair] > most_rows):
                yield pack
                pack, tokens, rows = [], cut, 0
            pack.append(pair)
            tokens, rows = tokens + size, rows + targets[pair]
    if pack:
        yield pack


def _pack(
    sequences: Sequence[np.ndarray], cuts: Sequence[int], targets: Sequence[int], heads: int, groups: int
) -> Pack:
    """The tensors of a pack. The last token of each sequence is only a label.

    `cuts` has the length of each pair's beginning; `heads` is H; `groups` is H / G, the heads that share their keys.
    """
    number_of: dict[bytes, int] = {}
    owner_N = [number_of.setdefault(sequence[:cut].tobytes(), len(number_of))
               for sequence, cut in zip(sequences, cuts, strict=True)]  # fmt: skip
    texts = [np.frombuffer(text, dtype=np.int64) for text in number_of]
    beginnings = len(texts)
    texts += [sequence[cut:-1] for sequence, cut in zip(sequences, cuts, strict=True)]
    lengths = torch.tensor([len(text) for text in texts])
    ends = lengths.cumsum(0)
    starts, first = (ends - lengths), [0] * beginnings + list(cuts)
    places = [start + np.arange(len(text)) for start, text in zip(first, texts, strict=True)]
    rows = [np.arange(end - target, end) for end, target in zip(ends[beginnings:].tolist(), targets, strict=True)]
    labels = [sequence[len(sequence) - target :] for sequence, target in zip(sequences, targets, strict=True)]
    ids_T, places_T, rows_R, labels_R = (
        torch.from_numpy(np.concatenate(part)) for part in (texts, places, rows, labels)
    )
    nothing = torch.zeros(beginnings, dtype=torch.int64)
    parts, order, before = [], [], 0
    for part, prefix in ((slice(None, beginnings), nothing), (slice(beginnings, None), torch.tensor(owner_N))):
        read = lengths[prefix] * (part.start is not None)
        made, inside_BS, rows_BHS = _part(starts[part], lengths[part], starts[prefix], read, heads, groups)
        order.append((before + rows_BHS.transpose(1, 2))[inside_BS])
        parts.append(made)
        before += made.query_BGQ.numel()
    return Pack(ids_T[None], places_T[None], rows_R, labels_R, torch.cat(order), *parts)


def _part(starts_B: Tensor, lengths_B: Tensor, starts_of_prefix_B: Tensor, lengths_of_prefix_B: Tensor,
          heads: int, groups: int) -> tuple[Part, Tensor, Tensor]:  # fmt: skip
    """(part, inside_BS: true for tokens, rows_BHS: the row of each token's head in the part's results)"""
    own_BS, inside_BS = _positions(starts_B, lengths_B)
    prefix_BP, inside_BP = _positions(starts_of_prefix_B, lengths_of_prefix_B)
    texts, size = own_BS.shape
    query_BGQ = (own_BS[:, None] * heads + torch.arange(heads)[:, None]).view(texts, heads // groups, groups * size)
    shared = heads // groups
    key_BGK = torch.cat([prefix_BP, own_BS], 1)[:, None] * shared + torch.arange(shared)[:, None]
    causal_BSS = torch.ones(size, size, dtype=torch.bool).tril().expand(texts, size, size)
    mask_BSK = torch.cat([inside_BP[:, None].expand(-1, size, -1), causal_BSS], 2)
    rows_BHS = torch.arange(texts * heads * size).view(texts, heads, size)
    return Part(query_BGQ, key_BGK, mask_BSK.repeat(1, groups, 1)[:, None]), inside_BS, rows_BHS


def _positions(starts_B: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """(positions of the tokens of each text, padded with 0; true for tokens), both of shape (B, longest text)"""
    columns = torch.arange(-(-int(lengths_B.max()) // ROUND_TO) * ROUND_TO)
    inside_BS = columns < lengths_B[:, None]
    return (starts_B[:, None] + columns) * inside_BS, inside_BS
