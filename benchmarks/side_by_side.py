"""Shared by the benchmarks: runs contestants in turn, and stores ratios of medians. `make bench` writes README.md.

Contestants alternate in one process, so a change of the machine's speed affects all of them. Printed are medians of
`ROUNDS` rounds, and the ratio of the medians.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np
import torch

from dream.utils.logging import get_logger

log = get_logger(__name__)

T = TypeVar("T")
ROUNDS = 5
REST = 0.3  # seconds before each measurement: waiting threads of the contestant before may keep a core busy
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "lightning", "transformers", "sentence-transformers", "bm25s", "faiss-cpu", "numpy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass
class Row:
    """A row of benchmarks/README.md.

    Args:
        work: what was measured.
        ours: DREAM's figure, with its unit.
        peer: the peer's name and figure.
        ratio: peer's time / our time. Above 1: DREAM is faster.
        bar: the ratio that is wanted, or None. With `at_most`, the ratio is our time / the floor, and small is good.
        floor: what the machine could do at best, and the share that is reached.
    """

    work: str
    ours: str
    peer: str
    ratio: float
    bar: float | None = None
    at_most: bool = False
    floor: str = ""


def train_with_one_thread(overrides: list[str], folder: Path) -> Path:
    """Run dream-train in a process of its own, which can import these benchmarks. Returns the run, in `folder`."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-m", "dream.commands.train", f"paths.logs={folder}", f"paths.run={folder / 'run'}"]
    done = subprocess.run([*command, *overrides], env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                          text=True, capture_output=True, check=False)  # fmt: skip
    if done.returncode:
        sys.exit(f"dream-train failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    return folder / "run"


def train_in_turn(
    doc: str, corpus: str, sides: Mapping[str, list[str]], measure: Callable[[Path], T], run: list[str]
) -> tuple[argparse.Namespace, dict[str, list[T]]]:
    """Train an encoder with the overrides of each side, round after round.

    Args:
        doc: the text of --help.
        corpus: what --corpus should be.
        sides: overrides of each side.
        measure: reads a finished run.
        run: overrides of all sides. Those of the command line come last.

    Returns:
        (options of the command line, what was measured in each round of each side)
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an encoder like MiniLM")
    parser.add_argument("--corpus", required=True, help=corpus)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options, more = parser.parse_known_args()
    more = [f"encoder.name={options.model}", f"corpus.path={options.corpus}", *more]
    found: dict[str, list[T]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as data:
        for number in range(options.rounds):
            for side, words in sides.items():
                with tempfile.TemporaryDirectory() as logs:
                    overrides = [*words, *run, f"paths.data={data}", *more]
                    found[side].append(measure(train_with_one_thread(overrides, Path(logs))))
                log.info(f"  {number + 1}: {side}: {found[side][-1]}")
    return options, found


def alternate(
    contestants: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, warm: bool = True
) -> dict[str, float]:
    """Median seconds of each contestant. All run once before they are measured, unless `warm` is false."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + warm):
        for name, run in contestants.items():
            time.sleep(REST)
            start = time.perf_counter()
            run()
            if number >= warm:
                seconds[name].append(time.perf_counter() - start)
                log.info(f"  {name}: {seconds[name][-1]:.3f} s")
    return {name: statistics.median(values) for name, values in seconds.items()}


def product_peak(
    dtype: torch.dtype = torch.float32, rows: int = 4096, width: int = 384, inner: int = 1536, device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:  # fmt: skip
    """The best speed of a matrix product of this shape, in FLOP/s, with all threads. A GPU gets 16 times the rows."""
    rows *= 1 if device == "cpu" else 16
    x, weight = (torch.randn(size, width, dtype=dtype, device=device) for size in (rows, inner))
    best, times = float("inf"), 1 if device == "cpu" else 50  # products of a round: a GPU takes them in a queue
    for _ in range(30):
        start = clock()
        for _ in range(times):
            torch.nn.functional.linear(x, weight)
        wait_for(device)
        best = min(best, (clock() - start) / times)
    return 2 * rows * width * inner / best


def wait_for(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def read_bandwidth(megabytes: int = 512) -> float:
    """Bytes per second of reading memory that is in no cache."""
    data = np.ones(megabytes * 2**18, dtype=np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.from_numpy(data).sum()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def machine() -> dict[str, Any]:
    """Facts about this machine and the packages."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"processor": names[0] if names else platform.processor(), **gpu, "threads": torch.get_num_threads(),
            "flags": [flag for flag in FLAGS if f" {flag}" in text], "python": platform.python_version(),
            "packages": {name: installed(name) for name in PACKAGES}}  # fmt: skip


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def record(name: str, rows: list[Row]) -> None:
    """Store the rows in benchmarks/results/NAME.json, and print them."""
    RESULTS.mkdir(exist_ok=True)
    words = [re.sub(r"(^|=)/\S*/", r"\1", word) for word in sys.argv[1:]]  # no folders of this machine
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    content = {"command": command, "machine": machine(), "rows": [asdict(row) for row in rows]}
    unfinished = RESULTS / f"{name}.json.tmp"
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(RESULTS / f"{name}.json")
    for row in rows:
        log.info(f"{row.work}: {row.ours}; {row.peer}; {row.ratio:.2f} x" + (f"; {row.floor}" if row.floor else ""))
