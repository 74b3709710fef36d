"""Embeds the whole corpus, shard by shard. After an interruption, only the missing shards are embedded.

Shape suffixes: B passages of a batch, D embedding width.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dream.encoders.base import Encoder
from dream.store.store import ENCODER, Store
from dream.utils import ranks
from dream.utils.atomic_io import LOCK, checksum, flush_to_disk, read_checked_json, write_checked_json
from dream.utils.cached_folders import discard
from dream.utils.errors import DamageError, DreamError
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

ROWS_PER_BLOCK = 16_384  # passages that are sorted by length together; a batch then has little padding
PROGRESS = "progress.json"  # the inputs of the shards, and the checksums of complete shards
PROGRESS_FILES = "progress*.json"  # each rank of a job has its own
PENDING = "pending-"  # start of the name of a folder with the encoder of an unfinished snapshot: see background.py


def embed_corpus(
    folder: Path,
    encoder: Encoder,
    store: Store,
    device: torch.device | str,
    batch_passages: int,
    rows_per_shard: int,
    encoder_fingerprint: str,
    meanwhile: Callable[[], None] | None = None,
) -> dict[str, str]:
    """Write the embeddings of all passages as float16 shards, with the encoder in eval mode.

    The ranks of a job, which all call it, take the shards in turn. Complete shards of an earlier call with the same
    arguments are reused, also if it had another number of ranks. A shard is written while the next one is embedded, so
    two are in memory.

    Args:
        folder: an existing folder for the shards and `progress.json`. Other files in it are deleted.
        device: the encoder's device.
        batch_passages: passages of a forward pass.
        rows_per_shard: passages of a file.
        encoder_fingerprint: hash of the encoder's weights.
        meanwhile: called in another thread while the passages are embedded. It may write other files into the folder.

    Returns:
        File name and SHA-256 of the shards, in the order of the passage ids.

    Raises:
        DreamError: an embedding is not finite.
        OSError: the disk is full.
    """
    count = len(store.passages)
    made_of = {"store_hash": store.hash, "encoder_fingerprint": encoder_fingerprint, "width": encoder.width,
               "count": count, "rows_per_shard": rows_per_shard, "batch_passages": batch_passages,
               "device": torch.device(device).type}  # fmt: skip
    done = ranks.on_rank_zero(lambda: _complete_shards(folder, made_of))
    record = PROGRESS if ranks.is_first() else f"progress-{ranks.rank()}.json"
    shards = _shards(count, rows_per_shard)
    own = shards[ranks.rank() :: ranks.world()]
    missing = [(name, ends) for name, ends in own if name not in done]

    def write(name: str, shard: np.ndarray) -> None:
        done[name] = _write_shard(folder / name, shard)
        write_checked_json(folder / record, {"made_of": made_of, "shards": done})

    with torch.inference_mode(), _in_eval_mode(encoder), _bar(own, missing) as bar:
        embedded = _embedded(missing, encoder, store, device, batch_passages, bar.update)
        _write_beside(embedded, write, meanwhile)
    digests = {name: digest for part in ranks.everyone(done) for name, digest in part.items()}  # all are complete
    return {name: digests[name] for name, _ in shards}


def _bar(own: list[tuple[str, tuple[int, int]]], missing: list[tuple[str, tuple[int, int]]]) -> Any:
    """A progress bar over the passages of this rank's shards. It starts at those of complete shards."""
    total, left = (sum(end - first for _, (first, end) in part) for part in (own, missing))
    return progress(total=total, initial=total - left, unit=" passages", unit_scale=True, desc="embedding the corpus",
                    leave=False)  # fmt: skip


def _embedded(
    shards: list[tuple[str, tuple[int, int]]],
    encoder: Encoder,
    store: Store,
    device: torch.device | str,
    batch_passages: int,
    count: Callable[[int], Any],
) -> Iterator[tuple[str, np.ndarray]]:
    """(file name, embeddings) of each shard. `count` is called with the number of passages of each batch."""
    for name, (first, end) in shards:
        shard = np.empty((end - first, encoder.width), dtype=np.float16)
        for ids in _batches_by_length(store, first, end, encoder.max_tokens, batch_passages):
            shard[ids - first] = _embed(encoder, store, ids, device)
            count(len(ids))
        yield name, shard


def _write_beside(
    shards: Iterator[tuple[str, np.ndarray]],
    write: Callable[[str, np.ndarray], None],
    meanwhile: Callable[[], None] | None,
) -> None:
    """Write each shard in another thread, while this one embeds the next. An error of a thread is raised here."""
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(meanwhile) if meanwhile else None
        writing: Future[None] | None = None
        for shard in shards:
            if writing:
                writing.result()
            if other and other.done():
                other.result()  # if it has failed, the other shards are not embedded first
            writing = threads.submit(write, *shard)
        for last in (writing, other):
            if last:
                last.result()


def _shards(count: int, rows_per_shard: int) -> list[tuple[str, tuple[int, int]]]:
    """(file name, (first passage, end)) of each shard."""
    bounds = pairwise([*range(0, count, rows_per_shard), count])
    return [(f"shard-{number:05d}.npy", ends) for number, ends in enumerate(bounds)]


def open_shard(path: Path) -> np.ndarray:
    """Memory-map a shard. Copy-on-write, because PyTorch warns about read-only arrays."""
    return np.load(path, mmap_mode="c", allow_pickle=False)


def _complete_shards(folder: Path, made_of: dict[str, Any]) -> dict[str, str]:
    """Checksums of the undamaged shards that were made from the same inputs. All other files are deleted."""
    listed: dict[str, str] = {}
    is_used = any(file.name != LOCK for file in folder.iterdir())
    for file in sorted(folder.glob(PROGRESS_FILES)) or [folder / PROGRESS] * is_used:
        try:
            content = read_checked_json(file)
            listed |= content["shards"] if content["made_of"] == made_of else {}
        except DamageError as damage:
            log.warning(f"{damage}: embedding its shards again")
    shards = {name: digest for name, digest in listed.items() if _is_whole(folder / name, digest)}
    for file in folder.iterdir():
        if file.name not in shards and file.name != LOCK:
            discard(file)
    if shards:
        log.info(f"Resuming an interrupted refresh: {len(shards)} shards are complete ({folder})")
        write_checked_json(folder / PROGRESS, {"made_of": made_of, "shards": shards})
    return shards


def _is_whole(shard: Path, digest: str) -> bool:
    whole = shard.is_file() and checksum(shard) == digest
    if not whole:
        log.warning(f"{shard}: {'damaged' if shard.exists() else 'missing'}: embedding its passages again")
    return whole


def _write_shard(path: Path, shard: np.ndarray) -> str:
    """Write a shard under a temporary name first. Returns its checksum."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(shard))
            file.write(shard.data)  # unlike np.save, it says when the disk is full
        digest = checksum(unfinished)
        flush_to_disk(unfinished)  # now, so that the end of the refresh has little to wait for
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    unfinished.replace(path)
    return digest


def _embed(encoder: Encoder, store: Store, ids: np.ndarray, device: torch.device | str) -> np.ndarray:
    """embedding_BD of these passages, float16 on the CPU. torch converts several times faster than NumPy."""
    embedding_BD = encoder.embed_passages(store, ids, device)
    if not embedding_BD.sum().isfinite():
        raise DreamError(f"the encoder gives embeddings that are not finite (among passages {ids.min()} to "
                         f"{ids.max()}): training has diverged; lower the learning rate")  # fmt: skip
    return embedding_BD.half().cpu().numpy()


def _batches_by_length(store: Store, first: int, end: int, longest: int, batch_passages: int) -> Iterator[np.ndarray]:
    """The passage ids from `first` to `end` - 1, in batches of passages of similar length."""
    for start in range(first, end, ROWS_PER_BLOCK):
        ranges = store.passages["tokens"][start : min(end, start + ROWS_PER_BLOCK), ENCODER]
        order = np.argsort(np.minimum(ranges[:, 1] - ranges[:, 0], longest), kind="stable") + start
        for place in range(0, len(order), batch_passages):
            yield order[place : place + batch_passages]


@contextmanager
def _in_eval_mode(encoder: Encoder) -> Iterator[None]:
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
