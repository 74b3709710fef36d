"""Functions that run on several processes, which form a job as `dream.utils.ranks` sees it."""

import multiprocessing
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dream.utils import ranks

SECONDS = 100  # after which the processes are killed


def _work(function: Callable, rank: int, world: int, folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    ranks.set_group(ranks.Group(rank, world, dist.PrefixStore("dream", store)))
    dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=world,
                            timeout=timedelta(seconds=SECONDS))  # fmt: skip
    result = function(*arguments)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(world: int, folder: Path, function: Callable, *arguments: Any) -> list[Any]:
    """The results of `function(*arguments)` on each of `world` processes, in the order of the ranks."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(function, rank, world, folder, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(SECONDS)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    assert [process.exitcode for process in processes] == [0] * world
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]
