"""Starts or joins the processes of a job.

Lightning knows the launcher (torchrun, SLURM or none), the ranks and the devices. If no launcher has started the
processes, the first process of a node starts them. They get the config from rank 0, so they need no command line, and a
job of a sweep has its own processes. All processes exist before the corpus is prepared.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from dream.utils import ranks, signals
from dream.utils.errors import ConfigError, DreamError
from dream.utils.job import GRACE_SECONDS, Job
from dream.utils.logging import quiet_lightning

JOIN_SECONDS = 1800  # the ranks of all nodes must have started within this time; then the timeout of tensors' exchange
SETTINGS = ("accelerator", "devices", "num_nodes", "strategy")  # keys of the Trainer that decide about the ranks
OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
STARTED_BY = "DREAM_STARTED_BY"  # process id of the first process of a node, in the environment of those it starts


@contextmanager
def joined(trainer: Mapping[str, Any] | None, follow: str) -> Iterator[None]:
    """Start or join the job that these settings of the Trainer ask for. All ranks run the block.

    Args:
        trainer: settings of Lightning's Trainer, of which `SETTINGS` are used. None in a process that rank 0 started.
        follow: a function, as `module:name`, that the processes call that rank 0 starts.

    Raises:
        ConfigError: the settings do not fit the launcher, or start processes in a way that is not supported.
        DreamError: on rank 0: another rank has failed.
        Interrupted: on rank 0: a signal has stopped this rank or another one.
        SystemExit: on the other ranks, if they or others fail. Rank 0 reports the error.
    """
    probe = _probe(trainer) if trainer is not None and _may_be_several(trainer) else None
    if trainer is not None and (probe is None or probe.world_size == 1):
        _refuse_forgotten_devices()
        yield
        return
    before = {name: os.environ.get(name) for name in OWN}
    with signals.interruptible():
        job = _start(probe, follow) if probe is not None else _follow()
        watcher = threading.Thread(target=job.watch, daemon=True)
        try:
            watcher.start()
            settings = ranks.on_rank_zero(lambda: dict(trainer or {}))
            _open_process_group(probe or _probe(settings), job.group)
            yield
            job.leave(GRACE_SECONDS)
        except BaseException as error:
            job.end(error)
        finally:
            job.closed.set()
            _close_process_group()
            ranks.set_group(None)
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _may_be_several(trainer: Mapping[str, Any]) -> bool:
    """Whether these settings can start several processes. One device on one node needs no probe."""
    return str(trainer.get("devices", "auto")) != "1" or int(trainer.get("num_nodes", 1)) > 1


def _probe(trainer: Mapping[str, Any]) -> Any:
    """A Trainer that only knows ranks and devices."""
    from hydra.utils import instantiate
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    quiet_lightning()
    settings = {name: trainer[name] for name in SETTINGS if name in trainer}
    probe = instantiate({"_target_": "lightning.Trainer", **settings}, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    launcher = probe.strategy.launcher
    if launcher is not None and not isinstance(launcher, _SubprocessScriptLauncher):
        raise ConfigError("trainer.strategy", trainer["strategy"], "it trains in copies of this process, which then "
                          "does not know the trained encoder; choose ddp")  # fmt: skip
    environment = getattr(probe.strategy, "cluster_environment", None)
    if environment is not None and environment.creates_processes_externally:
        try:
            environment.validate_settings(probe.num_devices, probe.num_nodes)
        except ValueError as error:
            shown = f"{trainer.get('devices')} trainer.num_nodes={trainer.get('num_nodes', 1)}"
            raise ConfigError("trainer.devices", shown, "the launcher has started another number of processes; give "
                              "the processes of a node, and the number of nodes") from error  # fmt: skip
    return probe


def _refuse_forgotten_devices() -> None:
    """Raise ConfigError if torchrun has started several processes that would not know each other."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", started))
        raise ConfigError("trainer.devices", 1, f"torchrun has started {started} processes; add trainer=ddp "
                          f"trainer.devices={here} trainer.num_nodes={started // here}")  # fmt: skip


def _start(probe: Any, follow: str) -> Job:
    """Join the job of a launcher, or be the first process of a node and start its other processes."""
    strategy, environment = probe.strategy, probe.strategy.cluster_environment
    rank, world = strategy.global_rank, strategy.world_size
    own = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": strategy.local_rank, "NODE_RANK": strategy.node_rank,
           "MASTER_ADDR": environment.main_address, "MASTER_PORT": environment.main_port}  # fmt: skip
    children = {} if environment.creates_processes_externally else {
        rank + local: own | {"RANK": rank + local, "LOCAL_RANK": local, STARTED_BY: os.getpid()}
        for local in range(1, probe.num_devices)
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in own.items()})
    module, name = follow.split(":")
    quiet = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"  # Ctrl-C during the imports: no traceback
    command = [sys.executable, "-c", f"{quiet}; from {module} import {name}; {name}()"]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = {
        rank: subprocess.Popen(
            command,
            env=os.environ | path | {name: str(value) for name, value in variables.items()},
            stdin=subprocess.DEVNULL,
        )
        for rank, variables in children.items()
    }
    try:
        return Job(_open_store(rank, world), started)
    except BaseException:
        for child in started.values():
            child.kill()
        raise


def _follow() -> Job:
    rank, world, started_by = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", STARTED_BY))
    return Job(_open_store(rank, world, started_by))


def _open_store(rank: int, world: int, started_by: int | None = None) -> ranks.Group:
    """Open the job's store. Rank 0 holds it, or torchrun. `started_by`: the process that has started this one."""
    import torch.distributed as dist

    held_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port, end = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), time.monotonic() + JOIN_SECONDS
    while True:
        try:
            store = dist.TCPStore(host, port, is_master=rank == 0 and not held_by_torchrun, wait_for_workers=False,
                                  timeout=timedelta(seconds=10))  # fmt: skip
            break
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            if started_by not in (None, os.getppid()):
                raise SystemExit(1) from error  # that process has ended before it opened the store
            if rank == 0 or time.monotonic() > end:
                cause = str(error).splitlines()[0]
                raise DreamError(f"rank {rank}: {host}:{port} cannot be reached ({cause}); set MASTER_ADDR to the "
                                 "first node, and MASTER_PORT to a free port") from error  # fmt: skip
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    group = ranks.Group(rank, world, dist.PrefixStore(f"dream/{attempt}", store))
    ranks.set_group(group)
    return group


def _open_process_group(probe: Any, group: ranks.Group) -> None:
    """Open torch's process group when all ranks are there: gloo for the CPU, NCCL for GPUs. Lightning then uses it."""
    import torch.distributed as dist

    ranks.everyone(None)
    device = probe.strategy.root_device
    probe.strategy.accelerator.setup_device(device)
    options = {} if device.type == "cpu" else {"device_id": device}
    dist.init_process_group(dist.get_default_backend_for_device(device), rank=group.rank, world_size=group.world,
                            store=dist.PrefixStore("group", group.store), timeout=timedelta(seconds=JOIN_SECONDS),
                            **options)  # fmt: skip


def _close_process_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()
