"""The corpus embedded by one state of the encoder, on disk, and the handle through which a run searches the newest one.

    <folder>/snapshot-00000500/
        manifest.json      store_hash, encoder_fingerprint, step, count, width, index, shards
        shard-00000.npy    (rows, D) float16; passage ids run on from shard to shard
        index.faiss        what the index needs besides
        encoder.safetensors    the weights that made it, by which it is made again where it is damaged

Shape suffixes: Q queries, K results of a query, N passages of the corpus, D embedding width.
"""

import copy
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dream.encoders.base import Encoder
from dream.indexes.base import Index
from dream.indexes.embedding import PROGRESS, embed_corpus, open_shard
from dream.indexes.exact import ExactIndex
from dream.store.permutation import permute
from dream.store.store import Store
from dream.utils.atomic_io import write_json
from dream.utils.cached_folders import discard, unfinished_directory, verify, verify_or_discard
from dream.utils.errors import DamageError, DataError, DreamError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)

ROWS_PER_SHARD = 262_144
WEIGHTS = "encoder.safetensors"
PROBES, POOL, NEIGHBOURS = 256, 16_384, 10  # of `overlap`
SEED = 20_260_627  # of the passages that `overlap` looks at: the same in every run


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh took. `overlap_at_10` is None for the first snapshot."""

    seconds: float
    overlap_at_10: float | None
    passages_per_second: float


class IndexSnapshot:
    """Read-only view of a snapshot. Raises DataError where the folder is not a complete one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
            self.embeddings: list[np.ndarray] = [open_shard(path / name) for name in self.manifest["shards"]]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not a complete index snapshot ({error}); delete it and embed the corpus "
                            "again") from error  # fmt: skip
        self.step: int = self.manifest["step"]
        self.count: int = self.manifest["count"]
        self.width: int = self.manifest["width"]
        self.encoder_fingerprint: str = self.manifest["encoder_fingerprint"]

    def refuse_other(self, store: Store, width: int | None) -> None:
        """Raise DataError unless it was made from this store and with embeddings of this width, where one is given."""
        if self.manifest["store_hash"] != store.hash:
            raise DataError(f"{self.path}: made from store {self.manifest['store_hash']}, but this is {store.hash} "
                            f"({store.path}): its passage ids mean other passages")  # fmt: skip
        if width not in (None, self.width):
            raise DataError(f"{self.path}: embeddings of width {self.width}, but the encoder's width is {width}; "
                            "take the encoder it was made with")  # fmt: skip

    def rows(self, passage_ids: np.ndarray) -> np.ndarray:
        """(len(passage_ids), D) float32 embeddings of these passages."""
        passage_ids = np.asarray(passage_ids, dtype=np.int64)
        ends = np.cumsum([len(shard) for shard in self.embeddings])
        owners = np.searchsorted(ends, passage_ids, side="right")
        found = np.empty((len(passage_ids), self.width), dtype=np.float32)
        for owner in np.unique(owners):
            here = owners == owner
            shard = self.embeddings[owner]
            found[here] = np.asarray(shard)[passage_ids[here] - (ends[owner] - len(shard))]
        return found


class IndexHandle:
    """The newest snapshot below `folder` and the index over it. Everybody who searches does it through here.

    `index` says which kind to build; each snapshot builds its own copy of it, and the old one is searched until the
    new one is complete on disk.
    """

    def __init__(self, index: Index, folder: Path, rows_per_shard: int = ROWS_PER_SHARD) -> None:
        require(rows_per_shard >= 1, "rows_per_shard", rows_per_shard, "at least 1")
        self.index = index
        self.folder = Path(folder)
        self.rows_per_shard = rows_per_shard
        self.current: IndexSnapshot | None = None

    def search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(sim_QK float32, ids_QK int64), best first; -inf and -1 where fewer than k passages are found."""
        if self.current is None:
            raise DreamError("the corpus is not embedded yet, so that there is nothing to search; keep the callback "
                             "callbacks.index_refresh, or take candidates=bm25")  # fmt: skip
        return self.index.search(query_QD, k)

    def open(self, path: Path, store: Store, width: int | None = None, fingerprint: str | None = None) -> None:
        """Search an existing snapshot from now on; where the configured index is another one, it is built anew.

        Raises DataError where it is damaged, was made from another store or, if they are given, by an encoder of
        another width or other weights.
        """
        try:
            verify(Path(path))
        except DamageError as damage:
            verify(Path(path), ignore=WEIGHTS)
            log.info(f"{damage}: not needed, because the embeddings are whole")
        snapshot = IndexSnapshot(Path(path))
        snapshot.refuse_other(store, width)
        if fingerprint not in (None, snapshot.encoder_fingerprint):
            raise DataError(f"{path}: made by the weights {snapshot.encoder_fingerprint}, not by {fingerprint}")
        index = copy.copy(self.index)
        if snapshot.manifest["index"] == index.description():
            index.load(snapshot.path, snapshot.embeddings)
        else:
            index.build(snapshot.embeddings, snapshot.count, snapshot.width)
        self.index, self.current = index, snapshot

    def refresh(
        self, encoder: Encoder, store: Store, step: int, device: torch.device | str, batch_passages: int
    ) -> RefreshReport:
        """Embed every passage, build the index over it, and search that from now on.

        Until it is complete, the old snapshot stays as it is, on disk and in memory. One that was interrupted goes on
        with the missing shards.
        """
        began = time.perf_counter()
        old, fingerprint = self.current, encoder.fingerprint()
        name, exists = self._name(fingerprint, store.hash, step)
        speed = 0.0
        if exists:  # a run resumed from an earlier checkpoint comes by here again
            self.open(self.folder / name, store, encoder.width)
        else:
            index = copy.copy(self.index)
            with unfinished_directory(self.folder / name) as unfinished:
                started = time.perf_counter()
                shards = embed_corpus(
                    unfinished, encoder, store, device, batch_passages, self.rows_per_shard, fingerprint
                )
                speed = len(store.passages) / (time.perf_counter() - started)
                index.build([open_shard(unfinished / shard) for shard in shards], len(store.passages), encoder.width)
                index.save(unfinished)
                _save_weights(encoder, unfinished / WEIGHTS)
                manifest = {"store_hash": store.hash, "encoder_fingerprint": fingerprint, "step": step,
                            "count": len(store.passages), "width": encoder.width,
                            "index": index.description(), "shards": shards}  # fmt: skip
                write_json(unfinished / "manifest.json", manifest)
                (unfinished / PROGRESS).unlink()
            self.index, self.current = index, IndexSnapshot(self.folder / name)
        shared = overlap(old, self.current) if old and self.current else None
        return RefreshReport(time.perf_counter() - began, shared, speed)

    def restore(
        self,
        path: Path,
        fingerprint: str,
        step: int,
        encoder: Encoder,
        store: Store,
        device: torch.device | str,
        batch_passages: int,
    ) -> bool:
        """Embed a damaged snapshot anew by the weights that it holds, and search that; False where they are damaged.

        `encoder` is of the same kind, and stays as it is; `fingerprint` is that of the weights.
        """
        then = copy.deepcopy(encoder)
        try:
            then.load_state_dict(load_file(path / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError):
            return False
        if then.fingerprint() != fingerprint:
            return False
        log.info(f"Embedding the corpus again by the encoder of step {step:,}, whose weights are in {path}")
        self.refresh(then, store, step, device, batch_passages)
        return True

    def prune(self, keep: set[Path]) -> None:
        """Delete the snapshots below the folder, other than `keep` and the current one, and what a crash left."""
        kept = {path.resolve() for path in keep} | ({self.current.path.resolve()} if self.current else set())
        for path in self.snapshots():
            if path.resolve() not in kept:
                discard(path)
        for path in self.folder.glob(".snapshot-*"):
            shutil.rmtree(path, ignore_errors=True)

    def snapshots(self) -> list[Path]:
        """Complete snapshots below the folder, oldest first."""
        return sorted(path.parent for path in self.folder.glob("snapshot-*/manifest.json"))

    def _name(self, encoder_fingerprint: str, store_hash: str, step: int) -> tuple[str, bool]:
        """Name of the snapshot, and whether it is there. One of other weights at this step is left untouched."""
        plain = f"snapshot-{step:08d}"
        for name in (plain, f"{plain}-{encoder_fingerprint}"):
            if not verify_or_discard(self.folder / name):
                return name, False
            manifest = IndexSnapshot(self.folder / name).manifest
            if manifest["encoder_fingerprint"] == encoder_fingerprint and manifest["store_hash"] == store_hash:
                return name, True
        raise DataError(f"{self.folder / name}: made from another store than {store_hash}; delete it")


def _save_weights(encoder: Encoder, file: Path) -> None:
    # Cloned, because the format takes no two tensors that share memory.
    save_file({name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}, file)


def overlap(old: IndexSnapshot, new: IndexSnapshot) -> float:
    """How alike two snapshots' neighbourhoods are, 0 to 1: how far the encoder has moved between them.

    For up to 256 seeded passages, the mean share of their 10 nearest passages by the old embeddings that are also among
    the 10 nearest by the new ones. Neighbours are searched exactly, among the same seeded 16,384 passages of the corpus
    (all of them where there are fewer), so that the cost does not grow with it.
    """
    count = min(old.count, new.count)
    pool = permute(SEED, np.arange(min(POOL, count)), count)
    k = min(NEIGHBOURS, len(pool) - 1)
    if k < 1:
        return 1.0
    near_old, near_new = (_neighbours(snapshot.rows(pool), k) for snapshot in (old, new))
    return float((near_old[:, :, None] == near_new[:, None, :]).any(2).float().mean())


def _neighbours(embedding_ND: np.ndarray, k: int) -> Tensor:
    """Rows (P, k) of the k nearest of the first P rows, other than itself."""
    index = ExactIndex(rows_per_chunk=POOL, keep_on_device=False)
    index.build([embedding_ND], *embedding_ND.shape)
    _, rows_PK = index.search(torch.from_numpy(embedding_ND[:PROBES]), k + 1)
    itself = rows_PK == torch.arange(len(rows_PK))[:, None]
    itself[:, -1] |= ~itself.any(1)  # copies of it may have crowded it out
    return rows_PK[~itself].view(len(rows_PK), k)
