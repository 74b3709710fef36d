"""Measures preparing a store against the two tokenizers alone, and two processes against one.

    .venv/bin/python benchmarks/preparing.py --text wiki.txt --megabytes 500 --tokenizer FOLDER --rounds 5

Makes a JSON-lines file of this size from a text file, and then measures in turn, each in a process of its own:

- store: a store of it, on all cores;
- tokenizers: the scorer's and the static encoder's tokenizer over the same documents, in memory, on all cores, as their
  library reads them (`encode_batch_fast`);
- one_core: a store of it on one core, which is one process.

The table shows the medians, store / tokenizers, and one_core / store. Give folders on a disk with 10 times the size.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dream.utils.runtime  # noqa: F401  first, as in every command
from dream.utils.logging import get_logger
from repeated_text import write_jsonl
from side_by_side import Row, record

log = get_logger(__name__)

CUTS = {"passage_tokens": 128, "context_tokens": 12, "min_context_tokens": 8, "target_tokens": 48}


def measure(part: str, file: Path, tokenizer: str, folder: Path) -> dict[str, float]:
    """Seconds and highest resident memory in MB of this process and of its largest child."""
    from transformers import AutoTokenizer

    from dream.corpora.jsonl import JsonlCorpus
    from dream.encoders.word_tokenizer import word_tokenizer
    from dream.store.build import open_or_build

    scorer = AutoTokenizer.from_pretrained(tokenizer)
    encoder = word_tokenizer(scorer)
    corpus = JsonlCorpus("wiki", str(file), "_id", "title", ["text"], True, None, None, "error", 32, None)
    if part == "tokenizers":
        texts = [document.text for document in corpus.documents()]
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        start = time.perf_counter()
        for first in range(0, len(texts), 1000):
            for side in (encoder, scorer):
                side.backend_tokenizer.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
    else:
        corpus.fingerprint()
        start = time.perf_counter()
        open_or_build(folder, corpus, encoder, scorer, **CUTS)
    seconds = time.perf_counter() - start
    peak = [resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "mb": peak[0], "mb_of_a_child": peak[1]}


def in_a_process(part: str, cores: set[int], options: argparse.Namespace, file: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = [sys.executable, __file__, "--part", part, "--file", str(file), "--tokenizer", options.tokenizer,
                   "--folder", folder]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True,
                              preexec_fn=lambda: os.sched_setaffinity(0, cores))  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a large text file in UTF-8")
    parser.add_argument("--megabytes", type=float, default=500, help="size of the corpus")
    parser.add_argument("--tokenizer", required=True, help="folder of the scorer's tokenizer, e.g. of SmolLM2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of the corpus and of temporary files")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.file, options.tokenizer, options.folder)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    file = write_jsonl(options.text, options.folder / "corpus.jsonl", options.megabytes)
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    parts = {"store": set(cores), "tokenizers": set(cores), "one_core": set(cores[:1])}
    found: dict[str, list[dict[str, float]]] = {part: [] for part in parts}
    for number in range(options.rounds):
        for part, allowed in parts.items():
            found[part].append(in_a_process(part, allowed, options, file))
            log.info(f"round {number + 1}, {part}: {found[part][-1]}")
    seconds = {part: statistics.median(row["seconds"] for row in rows) for part, rows in found.items()}
    for part in parts:
        peak = max(row["mb"] for row in found[part])
        log.info(f"{part:11} at most {peak:,.0f} MB, and {max(row['mb_of_a_child'] for row in found[part]):,.0f} MB in "
                 "a child")  # fmt: skip
    store, tokenizers, one_core = (seconds[part] for part in ("store", "tokenizers", "one_core"))
    size = f"{options.megabytes:g} MB"
    record("preparing", [
        Row(f"preparing a store of {size}, {len(cores)} cores", f"{store:.1f} s",
            f"the two tokenizers alone: {tokenizers:.1f} s", store / tokenizers, 1.4, at_most=True),
        Row(f"preparing a store of {size}, {len(cores)} cores", f"{store:.1f} s", f"one core: {one_core:.1f} s",
            one_core / store, 1.7 if len(cores) == 2 else None),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
