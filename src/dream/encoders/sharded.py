"""Divides an encoder's weights over the ranks of a job, by FSDP2 (`trainer=fsdp`)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dream.encoders.base import Encoder
from dream.utils import ranks
from dream.utils.errors import require


def refuse_undividable(encoder: Encoder) -> None:
    """Raise ConfigError if the weights of this encoder cannot be divided, or a setting of it does not allow it."""
    name = type(encoder).__module__.rpartition(".")[2]
    require(bool(encoder.blocks()), "encoder", name, "trainer=fsdp divides the weights of transformers; choose "
            "encoder=hf or trainer=ddp")  # fmt: skip
    chosen = {"chunk": encoder.chunk, "compile": encoder.compiled}
    for key, value in chosen.items():
        require(not value, f"encoder.{key}", value, "is not possible if weights are divided; remove it, or choose "
                "trainer=ddp")  # fmt: skip


class ShardedEncoder:
    """An encoder whose weights, gradients and moments are divided over all ranks.

    A rank keeps 1/world of each weight. For a forward or backward pass, all ranks together assemble the weights of one
    block at a time.

    Args:
        encoder: divided in place. All ranks must have the same weights.
        device: the device of this rank.
    """

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.encoder = encoder.to(device)
        # The same layers and buffers, with empty weights that `whole` fills.
        empty: dict[int, Any] = {
            id(weight): nn.Parameter(weight.new_empty(0), weight.requires_grad) for weight in encoder.parameters()
        }
        self.frame: Encoder = copy.deepcopy(encoder, empty)
        mesh = init_device_mesh(device.type, (ranks.world(),))
        for block in encoder.blocks():
            fully_shard(block, mesh=mesh)
        fully_shard(encoder, mesh=mesh)

    @contextmanager
    def whole(self) -> Iterator[Encoder]:
        """A copy of the encoder with all weights on each rank. All ranks call it together; it is empty afterwards."""
        weights = dict(self.frame.named_parameters())
        try:
            with torch.no_grad():
                for name, divided in self.encoder.named_parameters():
                    weights[name].data = assembled(divided)
            yield self.frame
        finally:
            for weight in weights.values():
                weight.data = weight.new_empty(0)


@contextmanager
def whole_encoder(module: Any) -> Iterator[Encoder]:
    """The encoder of a LightningModule with all of its weights on each rank, e.g. to embed the corpus.

    All ranks call it together.
    """
    sharded = getattr(module, "sharded", None)
    if sharded is None:
        yield module.encoder
    else:
        with sharded.whole() as encoder:
            yield encoder


def assembled(tensor: Tensor) -> Tensor:
    """The whole of a divided tensor, on each rank; any other tensor itself. All ranks call it together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a divided tensor; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def divided_like(whole: Tensor, weight: Any) -> Tensor:
    """A whole tensor, divided over the ranks as this weight is. All ranks call it together."""
    if not hasattr(weight, "device_mesh"):
        return whole.to(weight)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements)
