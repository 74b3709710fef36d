"""A file system that fills up while a run trains, saves and refreshes. Run: pytest tests/faults/test_disk_full.py

Needs the right to mount one; skipped where it is not given.
"""

import shutil
import subprocess

import pytest
from tests.faults.test_stop import wait_for

from dream.checkpoints import verify_checkpoint

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


def fill(folder) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


@pytest.mark.parametrize("after", ["checkpoints/last.ckpt", "index/generation-00000000", "config.yaml"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(reference, reference_result, small_disk, after):
    world = reference.copy(small_disk / "world")
    shutil.rmtree(world.root / "logs")
    world.overrides.append("callbacks.last_checkpoint.every_n_train_steps=1")
    process = world.start()
    wait_for(lambda: any((world.root / "logs").glob(f"tiny/*/{after}")), process)
    fill(small_disk)
    process.join(120)
    assert process.exitcode == 1
    (small_disk / "filler").unlink()  # the log could not be written either
    for checkpoint in world.latest().glob("checkpoints/*.ckpt"):
        verify_checkpoint(checkpoint)
    assert world.go_on() == 0, world.output()[-3000:]
    assert world.result() == reference_result
    assert not world.forgotten()


def test_the_message_names_the_disk_and_what_is_intact(reference, small_disk):
    world = reference.copy(small_disk / "world")
    shutil.rmtree(world.root / "data" / "stores")
    world.log = reference.root / "log of a full disk.txt"
    fill(small_disk)
    assert world.run() == 1
    assert "the disk is full" in world.output()
    assert "Traceback" not in world.output()
