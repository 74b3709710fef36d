"""Checkpoints are whole and hold no code, or they are refused by name. Run: pytest tests/utils/test_checkpoints.py"""

import random

import pytest
import torch

from dream.utils.checkpoints import SafeCheckpointIO, read_checkpoint, verify_checkpoint
from dream.utils.errors import DamageError, DataError

CONTENT = {"weights": torch.arange(300.0), "step": 3, "nested": {"text": ["a", None, True]}}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def test_what_is_written_is_read(checkpoint):
    content = SafeCheckpointIO().load_checkpoint(checkpoint)
    assert torch.equal(content.pop("weights"), CONTENT["weights"])
    assert content == {"step": 3, "nested": CONTENT["nested"]}
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_every_damage_is_named(checkpoint):
    whole, draw = checkpoint.read_bytes(), random.Random(0)
    for _ in range(300):
        place = draw.randrange(len(whole))
        if draw.random() < 0.3:
            checkpoint.write_bytes(whole[:place])
        else:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << draw.randrange(8)
            checkpoint.write_bytes(flipped)
        with pytest.raises(DataError, match=str(checkpoint)):
            read_checkpoint(checkpoint)


def test_checkpoints_of_plain_lightning_are_read_and_checked(tmp_path):
    path = tmp_path / "plain.ckpt"
    torch.save(CONTENT, path)
    assert read_checkpoint(path)["step"] == 3
    place = path.read_bytes().index(CONTENT["weights"].numpy().tobytes())
    flipped = bytearray(path.read_bytes())
    flipped[place] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DamageError, match=str(path)):
        read_checkpoint(path)


class RunsCode:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, zipped):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {}, "callbacks": RunsCode(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"evil\.ckpt"):
        SafeCheckpointIO().load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"no checkpoint at all" * 100])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    with pytest.raises(DamageError, match=r"file\.ckpt.*ckpt=FILE"):
        verify_checkpoint(path)
