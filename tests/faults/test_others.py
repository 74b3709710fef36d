"""A run never deletes or changes another run's files. Run: pytest tests/faults/test_others.py"""

import signal

import pytest

pytestmark = pytest.mark.slow


def test_a_second_run_leaves_the_first_ones_files_alone(reference, reference_result, tmp_path):
    """Beside a stopped run and a finished one: a new run, and one that starts from the other's checkpoint."""
    world = reference.copy(tmp_path / "world")
    (finished,) = (world.root / "logs" / "tiny").iterdir()
    finished.rename(finished.with_name("finished"))
    finished = finished.with_name("finished")
    world.stop(signal.SIGTERM)
    stopped = world.latest()

    def files():
        return {file: file.read_bytes() for run in (finished, stopped) for file in run.rglob("*") if file.is_file()}

    before = files()
    assert world.run() == 0, world.output()[-3000:]
    assert files() == before
    assert world.run(f"ckpt={stopped / 'checkpoints' / 'last.ckpt'}") == 0, world.output()[-3000:]
    assert world.result() == reference_result
    assert world.latest() not in (finished, stopped)
    assert files() == before
