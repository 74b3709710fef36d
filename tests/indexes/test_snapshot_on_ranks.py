"""A refresh of several ranks makes the snapshot of one. Run: pytest tests/indexes/test_snapshot_on_ranks.py"""

from pathlib import Path

import pytest
import torch
from tests.processes import run_ranks

from dream.encoders.base import Encoder
from dream.indexes.faiss import FaissIndex
from dream.indexes.snapshot import IndexHandle
from dream.store.store import Store


def refresh(folder: Path, store: Path, encoder: Encoder) -> list[list[int]]:
    """Refresh, and return the nearest passages of the first passage, as this rank finds them."""
    handle = IndexHandle(FaissIndex("Flat", {}), folder, rows_per_shard=50)
    handle.refresh(encoder, Store(store), 3, "cpu", batch_passages=7)
    assert handle.current is not None
    return handle.search(torch.from_numpy(handle.current.rows([0])), 5)[1].tolist()


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_make_the_snapshot_of_one_rank(world, tmp_path, world_size):
    expected = refresh(tmp_path / "one", world.store.path, world.encoder)
    found = run_ranks(world_size, tmp_path / "job", refresh, tmp_path / "several", world.store.path, world.encoder)
    assert found == [expected] * world_size
    assert files(tmp_path / "several") == files(tmp_path / "one")


def test_two_ranks_continue_what_one_rank_has_begun(world, tmp_path, monkeypatch):
    refresh(tmp_path / "one", world.store.path, world.encoder)
    embed, calls = type(world.encoder).embed_passages, iter(range(100))

    def interrupted(self, *arguments):
        if next(calls) == 10:  # in the second shard of 50 passages
            raise KeyboardInterrupt
        return embed(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(world.encoder), "embed_passages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refresh(tmp_path / "several", world.store.path, world.encoder)
    (partial,) = (tmp_path / "several").glob(".*.partial")
    first = (partial / "shard-00000.npy").stat().st_mtime_ns
    run_ranks(2, tmp_path / "job", refresh, tmp_path / "several", world.store.path, world.encoder)
    assert files(tmp_path / "several") == files(tmp_path / "one")
    (shard,) = (tmp_path / "several").glob("*/shard-00000.npy")
    assert shard.stat().st_mtime_ns == first
