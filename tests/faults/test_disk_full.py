"""A disk that fills up while a run prepares, pretrains, refreshes and saves. Run: pytest tests/faults/test_disk_full.py

Needs the right to mount one; skipped where it is not given.
"""

import shutil
import subprocess

import pytest

from dream.utils.checkpoints import verify_checkpoint

pytestmark = pytest.mark.slow

MEGABYTES = 24


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("from_nothing", "phase", "time"),
    [
        (True, "preparing the corpus", 1),
        (True, "preparing the store", 1),
        (True, "checkpointing", 2),  # of the pretraining
        (False, "refreshing", 3),
        (False, "checkpointing", 4),
    ],
)
def test_a_full_disk_is_told_and_the_run_resumes_when_there_is_space(
    reference, reference_result, small_disk, tmp_path, from_nothing, phase, time
):
    world = reference.copy(small_disk / "world")
    world.log = tmp_path / "log.txt"  # which could not be written either
    shutil.rmtree(world.root / "logs")
    if from_nothing:
        shutil.rmtree(world.root / "data")
    assert world.run(phase=phase, time=time, fill=small_disk) == 1
    assert "the disk is full" in world.output()
    assert "completed work is kept" in world.output()
    assert "Traceback" not in world.output()
    (small_disk / "filler").unlink()
    for checkpoint in world.root.rglob("*.ckpt"):
        verify_checkpoint(checkpoint)
    assert world.resume() == 0, world.output()[-3000:]
    assert world.result() == reference_result
    assert not world.left_over(reference)
