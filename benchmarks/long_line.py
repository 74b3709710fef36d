"""Measures time and memory for a corpus with one very long line between two thousand ordinary lines.

    /usr/bin/time -v .venv/bin/python benchmarks/long_line.py --megabytes 200 --limit 32 --part store
    /usr/bin/time -v .venv/bin/python benchmarks/long_line.py --megabytes 200 --limit 250 --part store

`--part` is the last part to run: `write` writes the file, `read` reads its documents, `store` prepares a store. The
memory of a part is the difference of the peaks ("Maximum resident set size"). A line above the limit is skipped.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np

from dream.corpora.jsonl import JsonlCorpus
from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer
from dream.store.build import open_or_build
from dream.utils.logging import get_logger

log = get_logger(__name__)

NEIGHBOURS = 1000  # ordinary documents before and after the long line
PIECE_WORDS = 100_000


def write_corpus(path: Path, megabytes: float, seed: int) -> None:
    """Words of one to ten letters. The long line is written in pieces, so it is never in memory as a whole."""
    random = np.random.default_rng(seed)
    letters = "".join(random.choice(list("etaoinshrdlu"), 50_000))
    places, sizes = random.integers(49_000, size=20_000), random.integers(1, 11, size=20_000)
    words = np.array([letters[at : at + size] for at, size in zip(places, sizes, strict=True)])
    with path.open("w", encoding="ascii") as file:
        for side in ("before", "after"):
            for number in range(NEIGHBOURS):
                record = {"_id": f"{side}{number}", "text": " ".join(random.choice(words, 200))}
                file.write(json.dumps(record) + "\n")
            if side == "before":
                written = file.write('{"_id": "long", "text": "')
                while written < megabytes * 1e6:
                    written += file.write(" ".join(random.choice(words, PIECE_WORDS)) + " ")
                file.write('"}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200, help="length of the line")
    parser.add_argument("--limit", type=float, default=32, help="corpus.max_document_mb")
    parser.add_argument("--part", choices=["write", "read", "store"], default="store")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    from transformers import PreTrainedTokenizerFast

    write_corpus(folder / "ordinary.jsonl", 0, options.seed)
    ordinary = JsonlCorpus(
        "ordinary", str(folder / "ordinary.jsonl"), "_id", "title", ["text"], True, None, None, "error", 32, None
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(open_or_train_tokenizer(folder / "tokenizers", ordinary, 2048))
    path = folder / "long.jsonl"
    write_corpus(path, options.megabytes, options.seed)
    corpus = JsonlCorpus("long", str(path), "_id", "title", ["text"], True, None, None, "skip", options.limit, None)
    start = time.perf_counter()
    if options.part == "read":
        lengths = [len(document.text) for document in corpus.documents()]
        log.info(f"{len(lengths):,} documents, the longest of {max(lengths):,} characters")
    elif options.part == "store":
        store = open_or_build(folder / "stores", corpus, tokenizer, tokenizer, passage_tokens=128, context_tokens=48,
                              min_context_tokens=16, target_tokens=48)  # fmt: skip
        log.info(f"{store.manifest['counts']['documents']:,} documents")
    log.info(f"{options.part}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
