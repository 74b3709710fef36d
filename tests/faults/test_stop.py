"""SIGTERM, SIGINT and SLURM's signal: a checkpoint, one line, the conventional exit code; then the same result.

Run: pytest tests/faults/test_stop.py
"""

import os
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.faults.world import World

from dream.utils.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow


def wait_for(condition, process, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def world(reference, tmp_path) -> World:
    """Caches as the reference left them, no run."""
    copy = reference.copy(tmp_path / "world")
    shutil.rmtree(copy.root / "logs")
    return copy


def runs_of(world: World) -> list[Path]:
    return sorted((world.root / "logs" / "tiny").iterdir())


@pytest.mark.parametrize(("signum", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_checkpoints_and_the_run_resumes_in_its_folder(world, reference_result, signum, workers):
    world.overrides.append(f"data.workers={workers}")
    world.stop(signum)
    name = signal.Signals(signum).name
    reported = [line for line in world.output().splitlines() if line.startswith(f"{name}: stopped")]
    assert len(reported) == 1
    assert "dream-train ckpt=last" in reported[0]
    (run,) = runs_of(world)
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert f"the last checkpoint is {checkpoint}" in reported[0]
    assert read_checkpoint(checkpoint)["global_step"] == 6
    assert "Traceback" not in world.output()
    assert world.run("ckpt=last") == 0
    assert runs_of(world) == [run]
    assert world.result() == reference_result
    assert not world.forgotten()


@pytest.mark.parametrize(
    ("phase", "time", "signum"),
    [
        ("preparing the store", 1, signal.SIGTERM),
        ("checkpointing", 1, signal.SIGINT),  # of the pretraining
        ("measuring the scorer", 1, signal.SIGTERM),
    ],
)
def test_a_signal_before_training_says_how_to_resume(world, reference_result, phase, time, signum):
    shutil.rmtree(world.root / "data")
    assert world.run(phase=phase, time=time, signum=signum) == 128 + signum
    output = world.output()
    name = signal.Signals(signum).name
    reported = f"{name}: stopped; completed work is kept. Resume with: dream-train "
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name}: stopped;")]
    assert line.startswith(reported), output[-3000:]
    assert shlex.split(line[len(reported) :]) == world.arguments()
    assert "Traceback" not in output
    assert world.run() == 0, world.output()[-3000:]
    assert world.result() == reference_result
    assert not world.forgotten()


def test_slurm_requeues_and_the_job_goes_on(world, reference_result, tmp_path, monkeypatch):
    """A fake `scontrol` notes that it was asked; the job that SLURM starts again finds its run by itself."""
    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_LOCALID": "0",
             "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "localhost",
             "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}  # fmt: skip
    process = world.start(environment=slurm)
    wait_for(lambda: any((world.root / "logs").glob("tiny/*/checkpoints/last.ckpt")), process)
    os.kill(process.pid, signal.SIGUSR1)
    wait_for(asked.exists, process)
    process.kill()
    process.join()
    assert asked.read_text() == "requeue 77\n"
    (run,) = runs_of(world)
    assert list(run.glob("hpc_ckpt_*.ckpt"))
    assert world.run(environment=slurm | {"SLURM_RESTART_COUNT": "1"}) == 0
    assert runs_of(world) == [run]
    assert "resuming from" in world.output()
    assert world.result() == reference_result
