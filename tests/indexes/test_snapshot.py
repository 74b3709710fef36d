"""Snapshots hold the encoder's embeddings, and a refresh that fails changes nothing.

pytest tests/indexes/test_snapshot.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dream.encoders.base import Encoder
from dream.indexes import embedding
from dream.indexes.exact import ExactIndex
from dream.indexes.faiss import FaissIndex
from dream.indexes.overlap import overlap
from dream.indexes.snapshot import IndexHandle, IndexSnapshot
from dream.indexes.snapshot_weights import save_weights
from dream.utils.errors import DataError, DreamError


def new_handle(folder: Path, **options) -> IndexHandle:
    return IndexHandle(ExactIndex(64, True), folder / "index", **options)


def refresh(handle: IndexHandle, world, encoder=None, step: int = 0):
    return handle.refresh(encoder or world.encoder, world.store, step, "cpu", batch_passages=7)


def test_vectors_are_the_encoders(world, tmp_path) -> None:
    """Expected: each passage by itself, without padding, as the weighted sum of its tokens' embeddings."""
    handle = new_handle(tmp_path, rows_per_shard=50)
    report = refresh(handle, world, step=12)
    store, snapshot = world.store, handle.current
    assert snapshot.path == tmp_path / "index" / "snapshot-00000012"
    assert len(snapshot.embeddings) == -(-len(store.passages) // 50) > 2
    assert all(shard.dtype == np.float16 for shard in snapshot.embeddings)
    stored = np.concatenate(snapshot.embeddings)
    assert len(stored) == snapshot.count == len(store.passages)
    with torch.no_grad():
        for passage_id in range(len(store.passages)):
            ids = torch.from_numpy(store.passage_tokens(passage_id, 0)[:6].astype(np.int64))[None]
            weight = world.encoder.weight_V[ids][..., None]
            summed_D = (weight * world.encoder.weights()["table_VD"][ids]).sum(1)[0]
            np.testing.assert_allclose(stored[passage_id], summed_D / summed_D.norm(), atol=1e-3)
    np.testing.assert_array_equal(snapshot.rows(np.array([170, 3, 49, 50])), stored[[170, 3, 49, 50]])
    assert report.overlap_at_10 is None
    assert report.seconds > 0


def test_finds_itself_first(world, tmp_path) -> None:
    for index in (ExactIndex(64, True), FaissIndex("Flat", {})):
        handle = IndexHandle(index, tmp_path / type(index).__name__)
        refresh(handle, world)
        query_QD = torch.from_numpy(handle.current.rows(np.arange(20)))
        sim_QK, _ = handle.search(query_QD, 3)
        torch.testing.assert_close(sim_QK[:, 0], torch.ones(20), rtol=2e-3, atol=2e-3)


def test_search_before_the_first_refresh(tmp_path) -> None:
    with pytest.raises(DreamError, match=r"callbacks\.index_refresh"):
        new_handle(tmp_path).search(torch.zeros(1, 4), 3)


def test_modes_are_put_back(world, tmp_path) -> None:
    encoder = world.make_encoder()
    encoder.frozen = torch.nn.Dropout(0.5).eval()
    encoder.train()
    encoder.frozen.eval()
    refresh(new_handle(tmp_path), world, encoder)
    assert encoder.training
    assert not encoder.frozen.training


class Counting:
    """The real encoder. It counts the passages, and is interrupted after `limit` of them."""

    def __init__(self, encoder, limit: int) -> None:
        self.encoder, self.limit, self.embedded = encoder, limit, 0

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def __call__(self, batch, side):
        if self.embedded + len(batch) > self.limit:
            raise KeyboardInterrupt
        self.embedded += len(batch)
        return self.encoder(batch, side)

    def embed_passages(self, store, passage_ids, device):
        return Encoder.embed_passages(self, store, passage_ids, device)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [ExactIndex(64, True), FaissIndex("Flat", {})])
def test_an_interrupted_refresh_changes_nothing_and_resumes_with_the_missing_shards(world, tmp_path, index) -> None:
    handle = IndexHandle(index, tmp_path / "index", rows_per_shard=30)
    refresh(handle, world)
    before, count = handle.current, len(world.store.passages)
    query_QD = torch.from_numpy(before.rows(np.arange(9)))
    expected = handle.search(query_QD, 5)
    other = world.make_encoder(seed=1)
    with pytest.raises(KeyboardInterrupt):
        refresh(handle, world, Counting(other, count // 2), step=50)
    assert handle.snapshots() == [before.path]
    assert handle.current is before
    assert all(torch.equal(a, b) for a, b in zip(expected, handle.search(query_QD, 5), strict=True))
    again = IndexHandle(index, tmp_path / "index", rows_per_shard=30)
    again.open(before.path, world.store, 16)
    assert all(torch.equal(a, b) for a, b in zip(expected, again.search(query_QD, 5), strict=True))

    rest = Counting(other, count)
    refresh(again, world, rest, step=50)
    assert rest.embedded == count - count // 2 // 30 * 30
    straight = IndexHandle(index, tmp_path / "straight", rows_per_shard=30)
    refresh(straight, world, other, step=50)
    assert [file.name for file in sorted(again.current.path.iterdir())] == [
        file.name for file in sorted(straight.current.path.iterdir())
    ]
    for file in straight.current.path.iterdir():
        assert (again.current.path / file.name).read_bytes() == file.read_bytes()
    again.prune(set())
    assert [path.name for path in again.folder.iterdir()] == ["snapshot-00000050"]


@pytest.mark.parametrize("damage", ["flipped", "other weights", "other batches", "progress lost"])
def test_shards_that_cannot_be_trusted_are_embedded_again(world, tmp_path, damage) -> None:
    handle, count = new_handle(tmp_path, rows_per_shard=30), len(world.store.passages)
    with pytest.raises(KeyboardInterrupt):
        refresh(handle, world, Counting(world.encoder, count - 1))
    partial = tmp_path / "index" / ".snapshot-00000000.partial"
    if damage == "flipped":
        shard = bytearray((partial / "shard-00000.npy").read_bytes())
        shard[-1] ^= 1
        (partial / "shard-00000.npy").write_bytes(shard)
    if damage == "progress lost":
        (partial / "progress.json").write_text("{")
    encoder = Counting(world.make_encoder(seed=3) if damage == "other weights" else world.encoder, count)
    handle.refresh(encoder, world.store, 0, "cpu", batch_passages=8 if damage == "other batches" else 7)
    assert encoder.embedded == (60 if damage == "flipped" else count) - (0 if damage != "flipped" else 30 - count % 30)
    assert handle.current.count == count


@pytest.mark.parametrize("file", ["shard-00001.npy", "index.faiss", "manifest.json", "checksums.json"])
def test_a_flipped_bit_is_reported_and_the_snapshot_rebuilt(world, tmp_path, capsys, file) -> None:
    handle = IndexHandle(FaissIndex("SQ8", {}), tmp_path, rows_per_shard=50)
    refresh(handle, world)
    path = handle.current.path / file
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 4]) + whole[41:])
    with pytest.raises(DataError, match=file):
        handle.open(handle.current.path, world.store)
    refresh(IndexHandle(FaissIndex("SQ8", {}), tmp_path, rows_per_shard=50), world)
    assert path.read_bytes() == whole
    assert len([line for line in capsys.readouterr().out.splitlines() if file in line]) == 1


def test_an_error_while_the_weights_are_written_is_reported(world, tmp_path) -> None:
    """They are written in another thread. The next refresh uses the shards that are complete."""
    handle = new_handle(tmp_path, rows_per_shard=50)
    with pytest.raises(FileNotFoundError, match="missing"):
        handle.refresh(world.encoder, world.store, 0, "cpu", 7, weights=tmp_path / "missing.safetensors")
    assert handle.current is None
    refresh(handle, world)
    kept = load_file(handle.current.path / "encoder.safetensors")
    assert torch.equal(kept["table_VD"], world.encoder.table_VD)


def test_an_error_while_a_shard_is_written_is_reported(world, tmp_path, monkeypatch) -> None:
    """A folder is where the second shard should be written. A shard is written in another thread."""
    handle = new_handle(tmp_path, rows_per_shard=50)
    refresh(handle, world)
    expected = np.concatenate(handle.current.embeddings)
    in_the_way = tmp_path / "other" / "index" / ".snapshot-00000000.partial" / "shard-00001.npy.tmp"
    handle = new_handle(tmp_path / "other", rows_per_shard=50)
    written = embedding._complete_shards

    def put_in_the_way(*arguments):
        shards = written(*arguments)
        in_the_way.mkdir()
        return shards

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_complete_shards", put_in_the_way)
        with pytest.raises(OSError, match=r"shard-00001\.npy"):
            refresh(handle, world)
    assert handle.current is None
    refresh(handle, world)
    np.testing.assert_array_equal(np.concatenate(handle.current.embeddings), expected)


def test_diverged_encoder_is_reported(world, tmp_path) -> None:
    encoder = world.make_encoder()
    with torch.no_grad():
        encoder.weight_V.fill_(float("nan"))
    with pytest.raises(DreamError, match="diverged"):
        refresh(new_handle(tmp_path), world, encoder)


def test_another_store_or_width_is_refused(world, tmp_path) -> None:
    handle = new_handle(tmp_path)
    refresh(handle, world)
    path = handle.current.path
    other, _ = world.make_store(tmp_path, documents=30)
    with pytest.raises(DataError, match=f"{world.store.hash}.*{other.hash}"):
        new_handle(tmp_path).open(path, other, 16)
    with pytest.raises(DataError, match=r"width 16.*width is 24"):
        new_handle(tmp_path).open(path, world.store, 24)


def test_incomplete_snapshot_is_reported(world, tmp_path) -> None:
    handle = new_handle(tmp_path)
    refresh(handle, world)
    (handle.current.path / "shard-00000.npy").unlink()
    with pytest.raises(DataError, match=r"snapshot-00000000: not a complete"):
        IndexSnapshot(handle.current.path)


def test_open_with_another_index_builds_it(world, tmp_path) -> None:
    handle = new_handle(tmp_path)
    refresh(handle, world)
    query_QD = torch.from_numpy(handle.current.rows(np.arange(9)))
    other = IndexHandle(FaissIndex("Flat", {}), handle.folder)
    other.open(handle.current.path, world.store)
    assert torch.equal(other.search(query_QD, 4)[1], handle.search(query_QD, 4)[1])


def test_the_same_step_again(world, tmp_path) -> None:
    """A resumed run with the same weights opens the existing snapshot. Other weights leave it untouched."""
    first, handle = new_handle(tmp_path), new_handle(tmp_path)
    refresh(first, world, step=5)
    written = (first.current.path / "manifest.json").stat().st_mtime_ns
    refresh(handle, world, step=5)
    assert (handle.current.path / "manifest.json").stat().st_mtime_ns == written
    assert [path.name for path in handle.snapshots()] == ["snapshot-00000005"]
    other = world.make_encoder(seed=1)
    refresh(handle, world, other, step=5)
    assert handle.current.path.name == f"snapshot-00000005-{other.fingerprint()}"
    manifest = json.loads((handle.folder / "snapshot-00000005" / "manifest.json").read_text())
    assert manifest["encoder_fingerprint"] == world.encoder.fingerprint()


def test_prune(world, tmp_path) -> None:
    handle = new_handle(tmp_path)
    for step in (0, 10, 20, 30):
        refresh(handle, world, step=step)
    (handle.folder / ".snapshot-00000040.1.tmp").mkdir()
    handle.prune({handle.folder / "snapshot-00000010"})
    assert sorted(path.name for path in handle.folder.iterdir()) == ["snapshot-00000010", "snapshot-00000030"]


def write_snapshot(folder: Path, rows: np.ndarray) -> IndexSnapshot:
    folder.mkdir()
    np.save(folder / "shard-00000.npy", rows.astype(np.float16))
    manifest = {"store_hash": "s", "encoder_fingerprint": "e", "step": 0, "count": len(rows), "width": rows.shape[1]}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"index": {}, "shards": ["shard-00000.npy"]}))
    return IndexSnapshot(folder)


def test_overlap_by_hand(tmp_path) -> None:
    """Two bundles of 11 directions. A passage's 10 nearest are the rest of its bundle.

    One member of each bundle is swapped with the other's: the 20 passages that stay share 9 of 10 neighbours; the 2
    that move share none: (20 × 0.9 + 2 × 0) / 22.
    """
    angles = np.concatenate([np.linspace(0, 0.2, 11), np.linspace(1.4, 1.6, 11)])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    swapped = rows.copy()
    swapped[[5, 16]] = rows[[16, 5]]
    old = write_snapshot(tmp_path / "old", rows)
    new = write_snapshot(tmp_path / "new", swapped)
    assert overlap(old, old) == 1.0
    assert overlap(old, new) == pytest.approx(18 / 22)


def test_overlap_with_identical_passages(tmp_path) -> None:
    """Thirty copies of one vector: each probe still has ten neighbours other than itself."""
    same = write_snapshot(tmp_path / "same", np.ones((30, 2)))
    assert overlap(same, same) == 1.0


def test_overlap_falls_as_the_encoder_moves(world, tmp_path) -> None:
    handle = new_handle(tmp_path)
    refresh(handle, world)
    near, far = world.make_encoder(), world.make_encoder(seed=1)
    with torch.no_grad():
        near.table_VD += 0.02 * torch.randn(near.table_VD.shape, generator=torch.Generator().manual_seed(0))
    slight = refresh(handle, world, near, step=1).overlap_at_10
    strong = refresh(handle, world, far, step=2).overlap_at_10
    assert strong < 0.6 < slight < 1


def test_weights_that_share_memory_are_saved_under_each_name(tmp_path) -> None:
    tied = torch.nn.Module()
    tied.first = tied.second = torch.nn.Linear(3, 2)
    save_weights(tied, tmp_path / "weights")
    saved = load_file(tmp_path / "weights")
    assert sorted(saved) == ["first.bias", "first.weight", "second.bias", "second.weight"]
    assert torch.equal(saved["first.weight"], tied.first.weight)
    assert torch.equal(saved["second.weight"], tied.first.weight)
