"""Scores pairs whose sequences begin alike. The shared beginning (usually the passage) is computed once.

A pack is one sequence without padding: M beginnings, then N endings, each of which continues one beginning. Norms and
matrix products, which take most of the time, read the pack as it is. Only the attention needs the structure: a
beginning attends to itself, and an ending attends to its beginning and to itself.

Shapes: M beginnings, N endings (one for each pair), T tokens of the pack, P tokens of the longest beginning, S tokens
of the longest ending, R target tokens, H heads, D width of a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from dream.scorers.attention.injection import plain
from dream.scorers.compilation import compiled_layers
from dream.utils.logging import get_logger

log = get_logger(__name__)

NAME = "dream_packed"
ROUND_TO = 8  # tokens: lengths of the padded attention, so that its memory is aligned
CHECK_TOLERANCE = 1e-3  # relative; a model that reads a pack wrongly differs by more than a tenth


@dataclass
class Pack:
    """The tensors of one forward. Positions of the pack are rows of its T tokens.

    Args:
        ids_1T: token ids.
        places_1T: position of each token in its own sequence.
        beginnings_MP: positions of the tokens of each beginning, padded with 0.
        endings_NS: positions of the tokens of each ending, padded with 0.
        owner_N: beginning of each ending.
        order_T: for each token of the pack, its place in the flat (M·P + N·S) results of the attention.
        mask_N1SK: what a token of an ending attends to: P tokens of its beginning, then S of the ending itself.
        rows_R: positions whose logits predict a target token.
        labels_R: the target tokens.
    """

    ids_1T: Tensor
    places_1T: Tensor
    beginnings_MP: Tensor
    endings_NS: Tensor
    owner_N: Tensor
    order_T: Tensor
    mask_N1SK: Tensor
    rows_R: Tensor
    labels_R: Tensor

    def to(self, device: torch.device) -> "Pack":
        """The pack on the device."""
        return Pack(*(getattr(self, field.name).to(device) for field in fields(self)))


class PackedAttention:
    """Computes the attention of a pack: see `Attend`."""

    def __init__(self, pack: Pack) -> None:
        self.beginnings_MP, self.endings_NS, self.owner_N = pack.beginnings_MP, pack.endings_NS, pack.owner_N
        self.order_T, self.mask_N1SK = pack.order_T, pack.mask_N1SK

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> Tensor:
        kwargs.pop("sliding_window", None)  # it is longer than any sequence: see `can_pack`
        parts_THD = [part[0].transpose(0, 1) for part in (query, key, value)]
        query_M, key_M, value_M = (part_THD[self.beginnings_MP].transpose(1, 2) for part_THD in parts_THD)
        query_N, key_N, value_N = (part_THD[self.endings_NS].transpose(1, 2) for part_THD in parts_THD)
        key_N = torch.cat([key_M[self.owner_N], key_N], 2)
        value_N = torch.cat([value_M[self.owner_N], value_N], 2)
        read_M = plain(module, query_M, key_M, value_M, None, **kwargs)
        read_N = plain(module, query_N, key_N, value_N, self.mask_N1SK, **kwargs)
        return torch.cat([read_M.flatten(0, 1), read_N.flatten(0, 1)])[self.order_T][None]


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
                                         [targets[pair] for pair in pairs])  # fmt: skip

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

    False for models whose attention cannot be replaced, which have convolutions or other states, or which compute
    positions in another way. Also if a sliding window is shorter than the longest sequence.

    Args:
        model: a causal language model with float32 or float64 weights.
        longest: maximum number of tokens of a sequence.
    """
    config = model.config.get_text_config()
    reach = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
    if any(tokens is not None and tokens < longest for tokens in reach):
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
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        log.debug(f"this model cannot share passages: {error}")
        return False
    return torch.allclose(packed_PT, expected_PT, rtol=CHECK_TOLERANCE, atol=CHECK_TOLERANCE)


@torch.no_grad()
def _alone(model: Any, sequence: np.ndarray, target: int, tokens: int) -> Tensor:
    """loglik_T of the target tokens of one sequence, 0 after the last."""
    ids_1T = torch.from_numpy(sequence)[None].to(model.device)
    logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, -target - 1 : -1]
    return torch.nn.functional.pad(_chosen_loglik(logits_TV, ids_1T[0, -target:]), (0, tokens - target))


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


def _pack(sequences: Sequence[np.ndarray], cuts: Sequence[int], targets: Sequence[int]) -> Pack:
    """The tensors of a pack. The last token of each sequence is only a label."""
    number_of: dict[bytes, int] = {}
    owner_N = [number_of.setdefault(sequence[:cut].tobytes(), len(number_of))
               for sequence, cut in zip(sequences, cuts, strict=True)]  # fmt: skip
    beginnings = [np.frombuffer(text, dtype=np.int64) for text in number_of]
    endings = [sequence[cut:-1] for sequence, cut in zip(sequences, cuts, strict=True)]
    read = np.array([len(text) for text in beginnings])[owner_N]
    ends = sum(map(len, beginnings)) + np.cumsum([len(text) for text in endings])
    beginnings_MP, endings_NS = _positions(beginnings, 0), _positions(endings, int(ends[0]) - len(endings[0]))
    size, length = beginnings_MP.shape[1], endings_NS.shape[1]
    mask_NSK = torch.ones(len(endings), length, size + length, dtype=torch.bool)
    mask_NSK[:, :, :size] = (torch.arange(size) < torch.from_numpy(read)[:, None])[:, None]
    mask_NSK[:, :, size:] = torch.ones(length, length, dtype=torch.bool).tril()
    inside = [number * size + np.arange(len(text)) for number, text in enumerate(beginnings)]
    inside += [beginnings_MP.numel() + number * length + np.arange(len(text)) for number, text in enumerate(endings)]
    places = [np.arange(len(text)) for text in beginnings]
    places += [start + np.arange(len(text)) for start, text in zip(read, endings, strict=True)]
    rows = [np.arange(end - target, end) for end, target in zip(ends, targets, strict=True)]
    labels = [sequence[len(sequence) - target :] for sequence, target in zip(sequences, targets, strict=True)]
    flat = [torch.from_numpy(np.concatenate(parts)) for parts in (beginnings + endings, places, inside, rows, labels)]
    ids_T, places_T, order_T, rows_R, labels_R = flat
    return Pack(ids_T[None], places_T[None], beginnings_MP, endings_NS, torch.tensor(owner_N), order_T,
                mask_NSK[:, None], rows_R, labels_R)  # fmt: skip


def _positions(texts: Sequence[np.ndarray], start: int) -> Tensor:
    """(texts, longest text): positions of the tokens of texts that follow one another, padded with 0."""
    ends = start + np.cumsum([len(text) for text in texts])
    rows = [torch.arange(end - len(text), end) for end, text in zip(ends.tolist(), texts, strict=True)]
    padded = pad_sequence(rows, batch_first=True)
    longest = max(ROUND_TO, -(-padded.shape[1] // ROUND_TO) * ROUND_TO)
    return torch.nn.functional.pad(padded, (0, longest - padded.shape[1]))
