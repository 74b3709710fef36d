"""Measures how long commands take to start: a search and a smoke run, each in a process of its own.

    .venv/bin/python benchmarks/start.py --run logs/latest --rounds 5

- search, cold: from starting `dream-search` until its answer is printed;
- search, warm: a query in a process that has opened the run (median of 200 queries);
- smoke: `dream-train debug=smoke`, with empty folders for data and logs, until it ends;
- torch, transformers: importing only these, which is the floor of a search.

Each figure is the median of the rounds. Run it on an idle machine; the files should be in the page cache.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import Row, record

QUERY = "read a file line by line"


def seconds_of(command: list[str], until: str | None = None) -> float:
    """Seconds until the process prints a line with this text; None: until it ends."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        found = None
        for line in process.stdout:
            if until and until in line and found is None:
                found = time.perf_counter() - start
    ended = time.perf_counter() - start
    if process.returncode or (until and found is None):
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    return ended if found is None else found


def warm(run: Path, data: str | None) -> tuple[int, float]:
    """(passages; median seconds of a query, after some that are not counted)"""
    import dream

    retriever = dream.load(run, data=data)
    seconds = []
    for number in range(220):
        start = time.perf_counter()
        retriever.search(f"{QUERY} {number}", k=5)
        seconds.append(time.perf_counter() - start)
    return len(retriever.store.passages), statistics.median(seconds[20:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("logs/latest"), help="a finished run")
    parser.add_argument("--data", help="its data folder, if it was moved")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    python, run = sys.executable, options.run.resolve()
    search = [python, "-m", "dream.commands.search", QUERY, f"run={run}"]
    search += [f"paths.data={Path(options.data).resolve()}"] if options.data else []
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            smoke = [python, "-m", "dream.commands.train", "debug=smoke", f"paths.data={folder}/data",
                     f"paths.logs={folder}/logs"]  # fmt: skip
            found.setdefault("torch", []).append(seconds_of([python, "-c", "import torch"]))
            found.setdefault("torch, transformers", []).append(seconds_of([python, "-c", "import torch, transformers"]))
            found.setdefault("search, cold", []).append(seconds_of(search, until=" 1. "))
            found.setdefault("smoke", []).append(seconds_of(smoke))
    seconds = {name: statistics.median(each) for name, each in found.items()}
    passages, seconds["search, warm"] = warm(run, options.data)
    imports = f"importing torch: {seconds['torch']:.2f} s; with transformers: {seconds['torch, transformers']:.2f} s"
    rows = [Row(name if floor else f"{name}, {passages:,} passages", f"{1000 * seconds[name]:,.0f} ms",
                f"wanted: {1000 * most:,.0f} ms", seconds[name] / most, 1.0, at_most=True, floor=floor)
            for name, most, floor in (("search, cold", 2.5, imports), ("search, warm", 0.005, ""),
                                      ("smoke", 8.0, imports))]  # fmt: skip
    record("start", rows)


if __name__ == "__main__":
    main()
