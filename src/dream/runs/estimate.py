"""Says what a large corpus will need, before anything is built, and refuses what cannot fit."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from dream.encoders.base import Encoder
from dream.store.ragged import pad_tokens
from dream.store.sample import StoreNeeds, estimate
from dream.store.tokens import BatchTokenizer
from dream.utils.errors import ConfigError
from dream.utils.logging import get_logger

log = get_logger(__name__)

LARGE_BYTES = 300_000_000  # of text; smaller corpora are prepared without an estimate
BM25_BYTES = 1_150  # of memory for a passage of 128 tokens, while its index is built
SNAPSHOTS = 3  # on disk at a time: the old one, the new one, and one that a checkpoint names
UNLISTED_WIDTH = 512


def announce(data: Any, encoder: Encoder, scorer: Any, index: Any, run: Path, bm25: bool) -> None:
    """Log the needs of a large corpus whose store is not built yet.

    Args:
        data: a `WindowDataModule`.
        encoder: if it has no weights yet, its width is estimated.
        scorer: the language model; its weights are not needed.
        index: the kind of index.
        run: folder of the run, for the snapshots.
        bm25: whether the run builds a BM25 index.

    Raises:
        ConfigError: the disk or the memory cannot hold it.
    """
    if data.corpus.size_bytes() < LARGE_BYTES or data.store_path.exists():
        return
    tokenizers = [BatchTokenizer(tokenizer) for tokenizer in data.tokenizers]
    needs = estimate(data.corpus, tokenizers, data.lengths, data.cuts["context"])
    width = encoder.width or encoder.width_with(getattr(scorer, "width", UNLISTED_WIDTH))
    embeddings = 2 * width * needs.passages
    lexical = BM25_BYTES * needs.passages if bm25 else 0
    in_memory = index.bytes_per_passage(width) * needs.passages if hasattr(index, "bytes_per_passage") else 0
    refresh = _refresh_seconds(encoder, needs)
    log.info(
        f"Corpus {data.corpus.name} has about {needs.passages:,} passages: store {_size(needs.store_bytes)}, "
        f"embeddings {_size(embeddings)} a snapshot, index {_size(in_memory)} in memory, "
        + (f"BM25 {_size(lexical)} in memory while it is built, " if bm25 else "")
        + f"preparing takes about {duration(needs.seconds)}"
        + (f", a refresh {duration(refresh)}" if refresh else "")
    )
    memory = max(needs.memory_bytes, lexical, in_memory)
    _require_disk(needs.store_bytes, data.stores_dir, "paths.data")
    _require_disk(embeddings * SNAPSHOTS, run, "paths.logs")
    available = available_memory()
    if available and memory > available:
        raise ConfigError("corpus", data.corpus.name, f"needs about {_size(memory)} of memory, but this machine has "
                          f"{_size(available)} available; use a part of the corpus or another machine, or index=ivfpq "
                          "and candidates=index")  # fmt: skip


def _require_disk(needed: int, folder: Path, key: str) -> None:
    folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(key, folder, f"needs about {_size(needed)}, but {_size(free)} are free; choose a folder on "
                          "another disk")  # fmt: skip


def available_memory() -> int:
    """Bytes that a process can still use; 0 if the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _refresh_seconds(encoder: Encoder, needs: StoreNeeds) -> float | None:
    """Time of embedding all passages on this device; None if the encoder has no weights yet or a GPU will do it."""
    if not encoder.width or torch.cuda.is_available():
        return None
    rows = [row[: encoder.max_tokens] for row in needs.token_rows[:128]]
    batch = pad_tokens(sorted(rows, key=len), 0)
    with torch.no_grad():
        encoder(batch.head(8), "passage")
        start = time.perf_counter()
        encoder(batch, "passage")
    return (time.perf_counter() - start) / len(rows) * needs.passages


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 5e7 else f"{count / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, e.g. 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
