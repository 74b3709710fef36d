"""The processes of a job, one on each device, are its ranks. Rank 0 prints, and writes the run's files.

With one device there is no job: every function then does the work itself, at once. Otherwise `dream.utils.launch`
starts or joins the job. Small values are exchanged through the job's store, which never times out: a rank that waits
for another one sleeps and looks again, so signals and the end of another rank interrupt it. Tensors go through
`torch.distributed`.

Shape suffixes: N rows on this rank, M rows on all ranks.
"""

import io
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of torchrun, Lightning and SLURM
POLL_SECONDS = 0.05


@dataclass
class Group:
    """The processes of a job, seen from one of them.

    Attributes:
        rank: number of this process.
        world: number of processes.
        store: a store of `torch.distributed` that all processes have opened.
        turn: number of exchanges so far. All ranks make the same exchanges in the same order.
    """

    rank: int
    world: int
    store: Any
    turn: int = 0

    def tell(self, key: str, value: Any) -> None:
        """Put a value that all other ranks can read."""
        self.store.set(key, _packed(value))

    def hear(self, key: str) -> Any:
        """Wait until a rank has put this value, and return it."""
        while not self.store.check([key]):
            time.sleep(POLL_SECONDS)
        return _unpacked(self.store.get(key))

    def next_key(self) -> str:
        self.turn += 1
        return f"turn/{self.turn}"


def _packed(value: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Any:
    """Containers, numbers, texts, paths and tensors: whoever reaches the store cannot make this process run code."""
    import torch

    with torch.serialization.safe_globals([PosixPath, WindowsPath]):
        return torch.load(io.BytesIO(content), weights_only=True)


_group: Group | None = None


def set_group(group: Group | None) -> None:
    """Set the job of this process; None if it has ended."""
    global _group
    _group = group


def rank() -> int:
    """Number of this process in its job. 0 if there is only one process."""
    return 0 if _group is None else _group.rank


def speaks() -> bool:
    """Whether this process prints. Before it has joined a job, the launcher's variables decide."""
    if _group is not None:
        return _group.rank == 0
    return next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "0") == "0"


def world() -> int:
    """Number of processes of the job."""
    return 1 if _group is None else _group.world


def is_first() -> bool:
    """Whether this process writes the run's files: rank 0, or the only process."""
    return rank() == 0


def on_rank_zero(work: Callable[[], T]) -> T:
    """Rank 0 does the work; all ranks return its result: containers, numbers, texts, paths and tensors.

    If the work fails, the error ends rank 0, and `dream.utils.job` then ends all other ranks.
    """
    if _group is None:
        return work()
    key = _group.next_key()
    if _group.rank == 0:
        result = work()
        _group.tell(key, result)
        return result
    return _group.hear(key)


def in_turn(work: Callable[[], T]) -> T:
    """Rank 0 does the work first; then the others do it, and find what rank 0 has cached. Returns the own result."""
    if _group is None:
        return work()
    if _group.rank == 0:
        result = work()
        on_rank_zero(lambda: None)
    else:
        on_rank_zero(lambda: None)
        result = work()
    everyone(None)
    return result


def everyone(value: T) -> list[T]:
    """The values of all ranks, in the order of the ranks. It returns when all ranks have called it."""
    if _group is None:
        return [value]
    key = _group.next_key()
    _group.tell(f"{key}/{_group.rank}", value)
    return [_group.hear(f"{key}/{rank}") for rank in range(_group.world)]


def largest(values: list[int]) -> list[int]:
    """The largest of each value over all ranks, by one reduction of tensors: cheap enough for every step."""
    if _group is None:
        return values
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values, device=_device())
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def mean(values: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The mean of each scalar over all ranks, without gradient, by one reduction."""
    if _group is None:
        return values
    import torch
    import torch.distributed as dist

    sums = torch.stack([value.detach().to(_device(), torch.float64) for value in values.values()])
    dist.all_reduce(sums)
    return {name: (total / _group.world).to(values[name]) for name, total in zip(values, sums, strict=True)}


def gather(rows_N: "Tensor", own_first: bool = True) -> "Tensor":
    """rows_M: the rows of all ranks, with gradient, in the order of the ranks; or those of this rank first.

    All ranks must have the same number of rows. The gradient of a row is the sum of its gradients on all ranks.
    """
    if _group is None:
        return rows_N
    import torch

    from dream.utils.gather import Gather

    rows_M = Gather.apply(rows_N, _group.rank, _group.world)
    if not own_first:
        return rows_M
    parts = rows_M.chunk(_group.world)
    return torch.cat([parts[_group.rank], *parts[: _group.rank], *parts[_group.rank + 1 :]])


def share(tensors: "Iterable[Tensor]") -> None:
    """Replace the values of these tensors by those of rank 0, in place."""
    if _group is None:
        return
    import torch
    import torch.distributed as dist

    with torch.no_grad():
        for tensor in tensors:
            value = tensor.detach().to(_device())
            dist.broadcast(value, 0)
            tensor.copy_(value)


def _device() -> Any:
    """Where the job's tensors are exchanged: NCCL exchanges tensors of a GPU, gloo those of the CPU."""
    import torch
    import torch.distributed as dist

    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
