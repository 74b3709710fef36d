"""A run on two processes that is stopped or loses a process. Run: pytest tests/faults/test_rank_stops.py"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.rank_stops import TWO, RankWorld, finish, is_alone

from dream.utils.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow
FINISHED = "Done in"


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> RankWorld:
    """A run on one process, and its caches."""
    world = RankWorld(tmp_path_factory.mktemp("ranks") / "reference", TWO[-1:])
    world.root.mkdir()
    assert world.run() == 0, world.output()[-3000:]
    return world


@pytest.fixture(scope="module")
def expected(reference) -> dict:
    return reference.result()


@pytest.fixture
def world(reference, tmp_path) -> RankWorld:
    """The caches, for a run on two processes."""
    shutil.copytree(reference.root / "data", tmp_path / "world" / "data")
    return RankWorld(tmp_path / "world")


@pytest.fixture(scope="module")
def on_two(reference, tmp_path_factory) -> dict:
    """The result of an undisturbed run on two processes."""
    world = RankWorld(tmp_path_factory.mktemp("ranks") / "two")
    shutil.copytree(reference.root / "data", world.root / "data")
    assert world.run() == 0, world.output()[-3000:]
    return world.result()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def signal_at(rank: int, signum: int) -> str:
    target = "tests.faults.rank_stops.SignalAtRank"
    return f"+callbacks.signal={{_target_: {target}, rank: {rank}, step: 5, signum: {int(signum)}}}"


def disturbed(world: RankWorld, rank: int, signum: int) -> int:
    process = world.start(signal_at(rank, signum))
    code = process.wait(120)
    assert is_alone(process, 30)
    return code


def scores(result: dict) -> dict[str, float]:
    return {name: value for name, value in result["summary"].items() if not name.startswith("train/")}


def test_a_run_on_two_processes_is_the_run_on_one(expected, on_two):
    """The same windows, scores and loss; weights and shards differ by rounding."""
    assert scores(on_two) == scores(expected)
    assert on_two["summary"]["train/loss"] == pytest.approx(expected["summary"]["train/loss"], rel=1e-5)


@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_makes_one_folder_and_one_table(world, on_two, nodes):
    port, processes = free_port(), []
    for node in range(nodes):
        launcher = ("-m", "torch.distributed.run", f"--nnodes={nodes}", f"--node-rank={node}",
                    "--master-addr=127.0.0.1", f"--master-port={port}", f"--nproc-per-node={2 // nodes}")  # fmt: skip
        processes.append(world.start(f"trainer.devices={2 // nodes}", f"trainer.num_nodes={nodes}",
                                     launcher=launcher, log=f"node{node}"))  # fmt: skip
    assert [finish(process, 120) for process in processes] == [0] * nodes
    output = "".join(world.root.with_suffix(f".node{node}").read_text() for node in range(nodes))
    assert output.count(FINISHED) == output.count("run folder") == output.count("held-out queries of split") == 1
    assert len(world.runs()) == 1
    assert world.result() == on_two


def test_a_sweep_has_one_folder_and_a_finished_run_is_never_written(world):
    assert world.run("seed=0,1", "trainer.max_steps=2", "-m") == 0, world.output()[-3000:]
    (sweep,) = world.runs()
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1"]
    assert [json.loads((sweep / job / "summary.json").read_text())["seed"] for job in "01"] == [0, 1]
    before = {file: file.read_bytes() for file in (sweep / "0").rglob("*") if file.is_file()}
    assert world.run("seed=5", "trainer.max_steps=2", f"hydra.run.dir={sweep / '0'}") == 0, world.output()[-3000:]
    assert {file: file.read_bytes() for file in (sweep / "0").rglob("*") if file.is_file()} == before
    assert json.loads((sweep / "0_2" / "summary.json").read_text())["seed"] == 5


@pytest.mark.parametrize(("rank", "signum"), [(0, signal.SIGTERM), (1, signal.SIGINT), (1, signal.SIGUSR1)])
def test_all_ranks_stop_after_the_step_in_which_one_got_a_signal(world, on_two, rank, signum):
    assert disturbed(world, rank, signum) == 128 + signum, world.output()[-3000:]
    lines = [line for line in world.output().splitlines() if "Resume with" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{signal.Signals(signum).name}: stopped; the last checkpoint is")
    assert "Traceback" not in world.output()
    (run,) = world.runs()
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert world.run("ckpt=last") == 0, world.output()[-3000:]
    assert world.runs() == [run]
    assert world.result() == on_two


def test_a_killed_rank_is_named(world, on_two):
    assert disturbed(world, 1, signal.SIGKILL) == 1, world.output()[-3000:]
    last = world.output().splitlines()[-1]
    assert last == "error: rank 1 of the job: was killed by SIGKILL; ckpt=auto resumes the run from its last checkpoint"
    assert world.run("ckpt=auto") == 0, world.output()[-3000:]
    assert len(world.runs()) == 1
    assert world.result() == on_two


def test_a_process_whose_first_process_was_killed_before_they_met_ends():
    """Nobody else can end it, because it has no connection to the others yet."""
    own = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(free_port()), "DREAM_STARTED_BY": "1"}  # fmt: skip
    command = [sys.executable, "-c", "from dream.commands.train import follow; follow()"]
    assert subprocess.run(command, env=os.environ | own, timeout=60, check=False).returncode == 1


def test_slurm_requeues_after_the_step_in_which_one_rank_got_its_signal(world, on_two, tmp_path):
    """Two tasks with SLURM's variables, and a `scontrol` that notes what it is asked. One task gets the signal."""
    asked, scontrol = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    signalled = signal_at(1, signal.SIGUSR1)
    port = free_port()

    def start(task: int, **variables: str):
        slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_LOCALID": "0",
                 "SLURM_NODEID": str(task), "SLURM_PROCID": str(task), "SLURM_JOB_NODELIST": "localhost",
                 "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port), "PATH": f"{scontrol.parent}:/usr/bin:/bin"}  # fmt: skip
        overrides = ("trainer=slurm", "trainer.accelerator=cpu", TWO[-1])
        return RankWorld(world.root, overrides, slurm | variables)

    tasks = [start(task).start(signalled, log=f"task{task}") for task in (0, 1)]
    assert [finish(task, 120) for task in tasks] == [0, 0]  # a real SLURM would end it before
    assert asked.read_text() == "requeue 77\n"
    (run,) = world.runs()
    (checkpoint,) = run.glob("hpc_ckpt_*.ckpt")
    assert read_checkpoint(checkpoint)["global_step"] == 6
    assert world.result() == on_two
    for made in ("summary.json", "checkpoints", "encoder"):
        path = run / made
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = [start(task, SLURM_RESTART_COUNT="1").start(log=f"task{task}") for task in (0, 1)]
    assert [finish(task, 120) for task in again] == [0, 0]
    assert world.runs() == [run]
    assert "resuming from" in Path(world.root.with_suffix(".task0")).read_text()
    assert world.result() == on_two
