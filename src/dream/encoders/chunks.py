"""Cached gradients: many texts are embedded with the memory of a few (GradCache, Gao et al. 2021, arXiv 2101.06983).

Shape suffixes: B texts, T tokens, D embedding width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dream.batch import TokenBatch

# Tokens of a forward without gradient on a CPU (benchmarks/embedding.py).
CPU_TOKENS = 2048  # the activations then fit into the cache
AMX_TOKENS = 4096  # in bfloat16 with AMX: small matrix products do not use its speed


def fastest_chunk(batch: TokenBatch, chunk: int | None, weights: torch.dtype) -> int | None:
    """Texts of a forward without gradient: on a CPU those of `CPU_TOKENS` or `AMX_TOKENS`, on other devices `chunk`.

    Args:
        batch: B texts.
        chunk: the maximum; None: no maximum.
        weights: type of the weights. Without autocast, matrix products are computed in it.
    """
    texts, tokens = batch.ids_BT.shape
    if batch.ids_BT.device.type != "cpu":
        return chunk
    computed_in = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weights
    has_amx = computed_in == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    return min(chunk or texts, max(1, (AMX_TOKENS if has_amx else CPU_TOKENS) // max(1, tokens)))


def embed_in_chunks(embed: Callable[[TokenBatch], Tensor], batch: TokenBatch, chunk: int) -> Tensor:
    """embedding_BD of `chunk` texts at a time, with gradient unless it is switched off.

    The first pass keeps only embeddings. After the loss of all texts has given the gradient of the embeddings, the
    backward pass encodes each chunk again, with the same state of the random numbers (dropout) and of autocast, and
    passes its share of this gradient to the weights. So the activations of only one chunk are in memory. Loss and
    gradient are those of one large batch, except for rounding and for the order in which dropout draws. With autocast,
    the chunks' gradients are added in the type of the weights: a shared copy of a weight would add them in its type.

    Args:
        embed: the encoder's forward, one row for each text.
        batch: B texts. Each chunk is cut to its longest text.
        chunk: texts of a forward.
    """
    longest = batch.mask_BT.sum(1)
    widths = [int(width) for width in torch.stack([part.amax() for part in longest.split(chunk)]).clamp(min=1).tolist()]
    parts = zip(widths, batch.ids_BT.split(chunk), batch.mask_BT.split(chunk), strict=True)
    chunks = [TokenBatch(ids_BT[:, :width], mask_BT[:, :width]) for width, ids_BT, mask_BT in parts]
    if not torch.is_grad_enabled():
        return torch.cat([embed(part) for part in chunks])

    def run(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return embed(TokenBatch(ids_BT, mask_BT))  # `checkpoint` keeps the random state of the devices of its tensors

    device, has_autocast = batch.ids_BT.device.type, torch.is_autocast_enabled(batch.ids_BT.device.type)
    with torch.autocast(device, torch.get_autocast_dtype(device), has_autocast, cache_enabled=False):
        return torch.cat([checkpoint(run, part.ids_BT, part.mask_BT, use_reentrant=False) for part in chunks])
