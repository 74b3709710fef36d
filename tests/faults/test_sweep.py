"""A sweep that is started again in its folder skips what is finished. Run: pytest tests/faults/test_sweep.py"""

import json
import re
import shlex
import shutil
import signal

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def world(reference, tmp_path):
    copy = reference.copy(tmp_path / "world")
    shutil.rmtree(copy.root / "logs")
    copy.overrides.append("trainer.max_steps=4")
    return copy


def test_a_sweep_resumes(world):
    """Of three jobs the second is stopped; the command that is printed then skips the first and continues with it."""
    script = ["candidates.k=2,3,4", "-m"]
    code = world.run(*script, phase="checkpointing", time=6, signum=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, world.output()[-3000:]
    reported = re.search(r"Resume with: dream-train (.*)", world.output())
    arguments = shlex.split(reported[1])
    (folder,) = (world.root / "logs" / "tiny").glob("*_sweep")
    assert arguments == ["-m", *world.arguments(), "candidates.k=2,3,4", f"hydra.sweep.dir={folder}"]
    first = {file: file.read_bytes() for file in (folder / "0").rglob("*") if file.is_file()}
    assert (folder / "0" / "summary.json").exists()
    assert not (folder / "1" / "summary.json").exists()
    assert world.run(f"hydra.sweep.dir={folder}", *script) == 0, world.output()[-3000:]
    output = world.output()
    assert output.count("1 of its jobs are finished and skipped, 1 resume from their last checkpoint") == 1
    assert f"Skipped: this job is finished, in {folder / '0'}" in output
    assert output.count(f"resuming from {folder / '1' / 'checkpoints'}") == 1
    assert output.count("DREAM: training") == 2
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2"]
    assert {file: file.read_bytes() for file in (folder / "0").rglob("*") if file.is_file()} == first
    for job in ("1", "2"):
        assert json.loads((folder / job / "summary.json").read_text())["steps"] == 4
    assert world.run("candidates.k=4,2", f"hydra.sweep.dir={folder}", "-m") == 0
    assert world.output().count("Skipped: ") == 2  # found by their config, not by their number
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2"]
