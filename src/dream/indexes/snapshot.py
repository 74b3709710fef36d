"""An index snapshot is the corpus embedded by one state of the encoder, on disk. A handle searches the newest one.

    <folder>/snapshot-00000500/    optimizer step
        manifest.json              store_hash, encoder_fingerprint, step, count, width, index, shards
        shard-00000.npy            (rows, D) float16, in order of passage ids; further shards have the next ids
        index.faiss                only with index=faiss, if the index is more than the embeddings
        encoder.safetensors        the encoder's weights: a damaged snapshot is rebuilt from them

Shape suffixes: Q queries, K results of a query, N passages of the corpus, D embedding width.
"""

import copy
import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.encoders.base import Encoder
from dream.indexes.base import Index, float32
from dream.indexes.embedding import PENDING, PROGRESS_FILES, embed_corpus, open_shard
from dream.indexes.overlap import overlap
from dream.indexes.snapshot_weights import WEIGHTS, keep_weights, load_weights
from dream.store.store import Store
from dream.utils import ranks
from dream.utils.atomic_io import write_json
from dream.utils.cached_folders import discard, unfinished_directory, verify, verify_or_discard
from dream.utils.errors import DamageError, DataError, DreamError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)

SHARDS = 8  # of a snapshot, because the ranks of a job embed different shards; larger corpora have more
LEAST_ROWS, MOST_ROWS = 256, 32_768  # of a shard


@dataclass(frozen=True)
class RefreshReport:
    """Measurements of a refresh.

    Args:
        seconds: wall time of the whole refresh.
        overlap_at_10: `overlap` of the old and the new snapshot; None for the first snapshot.
    """

    seconds: float
    overlap_at_10: float | None


class IndexSnapshot:
    """Read-only view of a snapshot.

    Args:
        path: its folder.

    Raises:
        DataError: the folder is not a complete snapshot.
    """

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
        self.neighbours: dict[int, Tensor] = {}  # kept by `overlap`, for each number of passages that it compares

    def refuse_other(self, store: Store, width: int | None) -> None:
        """Raise DataError if the snapshot was made from another store, or does not have the given width."""
        if self.manifest["store_hash"] != store.hash:
            raise DataError(f"{self.path}: made from store {self.manifest['store_hash']}, but this is {store.hash} "
                            f"({store.path}), with other passages; build the index of this store again")  # fmt: skip
        if width not in (None, self.width):
            raise DataError(f"{self.path}: embeddings of width {self.width}, but the encoder's width is {width}; "
                            "use the encoder it was made with")  # fmt: skip

    def rows(self, passage_ids: np.ndarray) -> np.ndarray:
        """(len(passage_ids), D) float32 embeddings of these passages."""
        passage_ids = np.asarray(passage_ids, dtype=np.int64)
        ends = np.cumsum([len(shard) for shard in self.embeddings])
        owners = np.searchsorted(ends, passage_ids, side="right")
        found = np.empty((len(passage_ids), self.width), dtype=np.float32)
        for owner in np.unique(owners):
            here = owners == owner
            shard = self.embeddings[owner]
            found[here] = float32(np.asarray(shard)[passage_ids[here] - (ends[owner] - len(shard))])
        return found


class IndexHandle:
    """The newest snapshot in `folder`, and the index over it. All searches of a run use this object.

    Each snapshot builds its own copy of `index`. The old snapshot is searched until the new one is complete on disk.

    Args:
        index: the kind of index to build.
        folder: the folder of the snapshots.
        rows_per_shard: passages of a file of embeddings; None: `SHARDS` files, within `LEAST_ROWS` and `MOST_ROWS`.

    Raises:
        ConfigError: `rows_per_shard` is below 1.

    Example:
        >>> handle = IndexHandle(ExactIndex(65_536, True), run / "index")
        >>> handle.refresh(encoder, store, step=0, device="cpu", batch_passages=256)
        >>> sim_QK, ids_QK = handle.search(query_QD, k=10)
    """

    def __init__(self, index: Index, folder: Path, rows_per_shard: int | None = None) -> None:
        require(rows_per_shard is None or rows_per_shard >= 1, "rows_per_shard", rows_per_shard, "null, or at least 1")
        self.index = self.unbuilt = index
        self.folder, self.rows_per_shard = Path(folder), rows_per_shard
        self.current: IndexSnapshot | None = None

    def search(self, query_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(sim_QK float32, ids_QK int64), best first. Missing results have similarity -inf and id -1.

        Raises:
            DreamError: there is no snapshot yet.
        """
        if self.current is None:
            raise DreamError("the corpus is not embedded yet, so there is nothing to search; keep the callback "
                             "callbacks.index_refresh, or use candidates=bm25")  # fmt: skip
        return self.index.search(query_QD, k)

    def open(self, path: Path, store: Store, width: int | None = None, fingerprint: str | None = None) -> None:
        """Open an existing snapshot for searching. If it was saved with another kind of index, the index is rebuilt.

        Args:
            path: folder of the snapshot.
            store: the expected store of the snapshot.
            width: the expected embedding width; None accepts any.
            fingerprint: the expected hash of the encoder's weights; None accepts any.

        Raises:
            DataError: the snapshot is damaged, or does not match these arguments.
        """
        try:
            verify(Path(path))
        except DamageError as damage:
            verify(Path(path), ignore=WEIGHTS)
            log.warning(f"{damage}: not needed, because the embeddings are undamaged")
        snapshot = IndexSnapshot(Path(path))
        snapshot.refuse_other(store, width)
        if fingerprint not in (None, snapshot.encoder_fingerprint):
            raise DataError(
                f"{path}: made by encoder weights {snapshot.encoder_fingerprint}, but these are {fingerprint}; "
                "refresh the index"
            )
        index = copy.copy(self.index)
        if snapshot.manifest["index"] == index.description():
            index.load(snapshot.path, snapshot.embeddings)
        else:
            index.build(snapshot.embeddings, snapshot.count, snapshot.width)
        self.index, self.current = index, snapshot

    def refresh(
        self, encoder: Encoder, store: Store, step: int, device: torch.device | str, batch_passages: int,
        weights: Path | None = None,
    ) -> RefreshReport:  # fmt: skip
        """Embed every passage and build the index. Later searches use the new snapshot. All ranks of a job call it.

        The old snapshot is unchanged, on disk and in memory, until the new one is complete. After an interruption, only
        the missing shards are embedded.

        Args:
            step: optimizer step, for the folder's name.
            device: the encoder's device.
            batch_passages: passages of a forward pass.
            weights: file with the weights that the snapshot keeps; None: those of `encoder`.
        """
        began = time.perf_counter()
        old, fingerprint = self.current, ranks.on_rank_zero(encoder.fingerprint)
        name, exists = ranks.on_rank_zero(lambda: self.name_of(fingerprint, store.hash, step))
        path, is_built = self.folder / name, False
        if not exists:  # otherwise a run resumed from an earlier checkpoint repeats this step
            digests: dict[str, str] = {}
            with ExitStack() as making:  # rank 0 creates and completes the folder
                unfinished = ranks.on_rank_zero(lambda: making.enter_context(unfinished_directory(path, digests)))

                def keep() -> None:
                    digests[WEIGHTS] = keep_weights(encoder, weights, unfinished / WEIGHTS)

                rows = self.rows_per_shard or min(MOST_ROWS, max(LEAST_ROWS, -(-len(store.passages) // SHARDS)))
                shards = embed_corpus(unfinished, encoder, store, device, batch_passages, rows, fingerprint,
                                      keep if ranks.is_first() else None)  # fmt: skip
                digests |= shards
                made_of = {"store_hash": store.hash, "encoder_fingerprint": fingerprint, "step": step,
                           "count": len(store.passages), "width": encoder.width, "shards": list(shards)}  # fmt: skip

                def build() -> None:
                    index = self._complete(unfinished, made_of)
                    making.close()
                    self.index, self.current = index, IndexSnapshot(path)

                ranks.on_rank_zero(build)
                is_built = ranks.is_first()
        if not is_built:
            self.open(path, store, encoder.width)
        shared = overlap(old, self.current) if old and self.current and ranks.is_first() else None
        return RefreshReport(time.perf_counter() - began, shared)

    def _complete(self, folder: Path, made_of: dict[str, Any]) -> Index:
        """Write the index and the manifest next to the shards. Returns the index."""
        index = copy.copy(self.index)
        index.build([open_shard(folder / shard) for shard in made_of["shards"]], made_of["count"], made_of["width"])
        index.save(folder)
        shards = made_of.pop("shards")
        write_json(folder / "manifest.json", made_of | {"index": index.description(), "shards": shards})
        for file in folder.glob(PROGRESS_FILES):
            file.unlink()
        return index

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
        """Rebuild a damaged snapshot from the encoder weights that are saved in it, and open it for searching.

        Args:
            path: folder of the snapshot.
            fingerprint: the expected hash of the saved weights.
            step: the snapshot's optimizer step.
            encoder: an encoder of the same architecture. Only a copy of it is changed.
            device: the encoder's device.
            batch_passages: passages of a forward pass.

        Returns:
            False if the saved weights are also damaged.
        """
        saved_encoder = copy.deepcopy(encoder)
        if not all(ranks.everyone(load_weights(saved_encoder, path / WEIGHTS, fingerprint))):
            return False
        log.info(f"Embedding the corpus again with the encoder of step {step:,}, whose weights are in {path}")
        self.refresh(saved_encoder, store, step, device, batch_passages)
        return True

    def prune(self, keep: set[Path]) -> None:
        """Delete unfinished snapshots, and all complete ones except `keep` and the current one."""
        kept = {path.resolve() for path in keep} | ({self.current.path.resolve()} if self.current else set())
        for path in self.snapshots():
            if path.resolve() not in kept:
                discard(path)
        for path in self.folder.glob(".snapshot-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f"{PENDING}snapshot-*"):
            snapshot = self.folder / path.name.removeprefix(PENDING)
            if snapshot.exists() or snapshot.resolve() not in kept:
                discard(path)

    def snapshots(self) -> list[Path]:
        """Complete snapshots in the folder, oldest first."""
        return sorted(path.parent for path in self.folder.glob("snapshot-*/manifest.json"))

    def name_of(self, encoder_fingerprint: str, store_hash: str, step: int) -> tuple[str, bool]:
        """Name of the snapshot, and whether it exists. A snapshot of the same step with other weights is kept."""
        plain = f"snapshot-{step:08d}"
        for name in (plain, f"{plain}-{encoder_fingerprint}"):
            if not verify_or_discard(self.folder / name):
                return name, False
            manifest = IndexSnapshot(self.folder / name).manifest
            if manifest["encoder_fingerprint"] == encoder_fingerprint and manifest["store_hash"] == store_hash:
                return name, True
        raise DataError(f"{self.folder / name}: made from another store than {store_hash}; delete it and run again")
