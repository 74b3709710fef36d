"""Measures memory and speed of preparing and streaming a corpus that is much larger than the memory in use.

    .venv/bin/python benchmarks/store_memory.py --megabytes 2000

It writes a JSON-lines file of artificial English, trains the scratch scorer's tokenizer on a sample, prepares the store
and streams windows with random passages from it. For each phase it prints the peak memory minus the memory of the
imports. `anonymous` is the process's own memory, which should stay below 1,500 MB. `resident` also counts pages of
memory-mapped files, which the system frees when it needs memory.
"""

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np

from dream.corpora.jsonl import JsonlCorpus
from dream.data.window_datamodule import WindowDataModule
from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer
from dream.utils.logging import get_logger

log = get_logger(__name__)

ONSETS = [*"bcdfghlmnprstvw", "br", "gr", "pl", "st", "th"]
MAPS = Path("/proc/self/smaps_rollup")


def memory_mb() -> tuple[float, float]:
    """Current (resident, anonymous) memory of this process."""
    sizes = {line.split()[0]: int(line.split()[1]) / 1e3 for line in MAPS.read_text().splitlines()[1:]}
    return sizes["Rss:"], sizes["Anonymous:"]


class Peaks:
    """Measures the memory every `every` seconds until `stop`, which returns the peaks."""

    def __init__(self, every: float = 0.2) -> None:
        self.every, self.highest = every, memory_mb()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.stopped.wait(self.every):
            resident, anonymous = memory_mb()
            self.highest = max(self.highest[0], resident), max(self.highest[1], anonymous)

    def stop(self) -> tuple[float, float]:
        self.stopped.set()
        self.thread.join()
        return self.highest


@contextmanager
def phase(name: str, megabytes: float, imports: tuple[float, float]) -> Iterator[None]:
    """Run a block, then log its time and memory."""
    peaks, start = Peaks(), time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    resident, anonymous = (high - low for high, low in zip(peaks.stop(), imports, strict=True))
    log.info(f"{name:10} {seconds:7.1f} s {megabytes / seconds:7.1f} MB/s   peak above imports:"
        f" anonymous {anonymous:6.0f} MB, resident {resident:6.0f} MB")  # fmt: skip


def write_corpus(path: Path, megabytes: float, seed: int) -> None:
    """Write documents of 1 to 2 kB. Words come from a dictionary of 50,000 words with a long-tailed distribution."""
    random = np.random.default_rng(seed)
    syllables = np.array([a + b + c for a in ONSETS for b in "aeiou" for c in ["", "", *"nrst"]], dtype=object)
    parts = syllables[random.integers(len(syllables), size=(50_000, 3))]
    parts[random.random(50_000) < 0.5, 2] = ""
    words = parts.sum(axis=1) + np.where(random.random(50_000) < 0.08, ".", "").astype(object)
    written = number = 0
    with path.open("w", encoding="ascii") as file:
        while written < megabytes * 1e6:
            ends = np.cumsum(random.integers(170, 340, size=500))
            chosen = words[(len(words) * random.random(ends[-1]) ** 4).astype(np.int64)].tolist()
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                line = f'{{"_id": "d{number}", "title": "", "text": "{" ".join(chosen[start:end])}"}}\n'
                written += file.write(line)
                number += 1


def stream(data: WindowDataModule, windows: int, candidates: int, seed: int) -> None:
    """Take batches as in training: windows, with random passages as candidates."""
    random = np.random.default_rng(seed)
    taken = 0
    for batch in data.train_dataloader():
        data.store.passage_batch(random.integers(len(data.store.passages), size=len(batch) * candidates), 128)
        taken += len(batch)
        if taken >= windows:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=2000, help="size of the corpus")
    parser.add_argument("--folder", type=Path, help="folder of the temporary files; default: the system's")
    parser.add_argument("--windows", type=int, default=20_000, help="number of windows to stream")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.megabytes, options.windows, options.seed)


def measure(folder: Path, megabytes: float, windows: int, seed: int) -> None:
    from transformers import PreTrainedTokenizerFast

    imports = memory_mb()
    log.info(f"imports: anonymous {imports[1]:.0f} MB, resident {imports[0]:.0f} MB")
    file = folder / "corpus.jsonl"
    with phase("write", megabytes, imports):
        write_corpus(file, megabytes, seed)
    corpus = JsonlCorpus("synthetic", str(file), "_id", "title", ["title", "text"], True, None, None, "error", 32, None)
    with phase("tokenizer", 30, imports):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            open_or_train_tokenizer(folder / "tokenizers", corpus, 8192)
        )
    data = WindowDataModule(
        corpus,
        tokenizer,
        tokenizer,
        max_query_tokens=64,
        stores_dir=str(folder / "stores"),
        batch_size=64,
        workers=0,
        limit_windows=None,
        questions=None,
        scored_windows=0,
        document_start_fraction=0.5,
        continuation_tokens=128,
        seed=seed,
        passage_tokens=128,
        context_tokens=48,
        min_context_tokens=16,
        target_tokens=48,
    )
    with phase("prepare", megabytes, imports):
        data.prepare_data()
    with phase("stream", windows * 96 * 4 / 1e6, imports):
        stream(data, windows, candidates=16, seed=seed)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - imports[0]
    log.info(f"highest resident size of the run: {highest:.0f} MB above imports, mapped files included")


if __name__ == "__main__":
    main()
