"""Files of data/ and logs/ that are cut short, changed by a bit, or cannot be read; then the run goes on.

Run: FAULT_DAMAGES=200 pytest tests/faults/test_damage.py -rP
"""

import os
import random
import signal
from pathlib import Path

import pytest
from tests.faults.world import World

DAMAGES = int(os.environ.get("FAULT_DAMAGES", 4))
REBUILT = ("data/stores", "data/tokenizers", "data/bm25", "data/scorers")


@pytest.fixture(scope="session")
def stopped(reference, tmp_path_factory) -> World:
    """Stopped between two refreshes, with caches, a generation and a checkpoint."""
    world = reference.copy(tmp_path_factory.mktemp("stopped") / "world")
    for run in (world.root / "logs" / "tiny").iterdir():
        world.remove(run)
    world.stop(signal.SIGTERM)
    return world


def protected(world: World) -> list[Path]:
    """Files of stores, tokenizers, BM25 indexes, scorers, generations, and the last checkpoint."""
    run = world.latest()
    folders = [world.root / name for name in REBUILT] + [run / "index"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and file.stat().st_size]
    return sorted([*files, run / "checkpoints" / "last.ckpt"])


def damage(file: Path, draw: random.Random) -> str:
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content))
    if draw.random() < 0.5:
        file.write_bytes(content[:place])
        return f"cut to {place} of {len(content)} bytes"
    content[place] ^= 1 << (bit := draw.randrange(8))
    file.write_bytes(content)
    return f"bit {bit} of byte {place} flipped"


def names(output: str, file: Path) -> bool:
    return any(str(file) in line and ("damaged" in line or "missing" in line) for line in output.splitlines())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(DAMAGES))
def test_damage_is_named_and_what_can_be_made_anew_is(stopped, reference_result, tmp_path, number):
    world, draw = stopped.copy(tmp_path / "world"), random.Random(number)
    file = draw.choice(protected(world))
    what = f"{file.relative_to(world.root)}: {damage(file, draw)}"
    code = world.go_on()
    output = world.output()
    assert names(output, file), f"{what}\n{output[-3000:]}"
    assert "Traceback" not in output
    if file.name == "last.ckpt":
        assert code == 1, what
        print(f"{what}: refused by name")
        return
    assert code == 0, f"{what}\n{output[-3000:]}"
    if "candidates can differ" in output:  # a generation of weights that are no more
        assert world.result().keys() == reference_result.keys()
        print(f"{what}: named, embedded anew")
    else:
        assert world.result() == reference_result, what
        print(f"{what}: named, made anew, bitwise equal")
    assert not world.forgotten()


@pytest.mark.parametrize("name", ["data/stores", "data/scorers", "logs/latest/checkpoints"])
def test_a_file_that_cannot_be_read_is_named(stopped, reference_result, tmp_path, name):
    world = stopped.copy(tmp_path / "world")
    names = ("encoder_ids.bin", "model.safetensors", "last.ckpt")
    file = next(file for file in sorted((world.root / name).resolve().rglob("*")) if file.name in names)
    file.chmod(0)
    assert world.run("ckpt=last", powerless=True) == 1
    assert str(file) in world.output()
    assert "Traceback" not in world.output()
    file.chmod(0o644)
    assert world.run("ckpt=last", powerless=True) == 0
    assert world.result() == reference_result
