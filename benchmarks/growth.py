"""Measures how the cost of each stage grows with the number of passages, with the static encoder.

    .venv/bin/python benchmarks/growth.py --text wiki.txt --model SMOLLM2 --passages 62000 250000 1000000 --out growth

Makes corpora from a text file: its documents, then the same with shuffled sentences. Tokenizer and token embeddings are
those of the model, as in the quickstart, without its random half, which has no neighbourhoods that an index could use.
Without --model, the tokenizer is trained on a sample, and the embeddings are random: an index finds less in them.

Each stage is measured in a process of its own: its time, its peak memory (resident, mapped files included) and its peak
of anonymous memory, both without what the imports take. Writes growth.json and growth.png, and prints a table with the
exponent of each stage: the slope of log(cost) over log(passages). 1 M passages need about 6 GB of disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np

from dream.utils.logging import get_logger
from repeated_text import write_jsonl
from store_memory import Peaks, memory_mb

log = get_logger(__name__)

STAGES = ("prepare", "bm25_build", "bm25_search", "embed", "index_build", "index_search")
CUTS = {"passage_tokens": 128, "context_tokens": 12, "min_context_tokens": 8, "target_tokens": 48}
WINDOWS = 256  # queries of a search
K = 64  # results of a BM25 query
DEPTH = 100  # of the recall of the index
BYTES_OF_A_PASSAGE = 480  # of the corpus; the table shows the true numbers


def parts(corpus: Any, folder: Path, model: str | None) -> tuple[Any, Any, int]:
    """(tokenizer, function that returns the token embeddings, width of the random part)"""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer

    if model is not None:
        embeddings = lambda: AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight.detach().float()  # noqa: E731
        return AutoTokenizer.from_pretrained(model), embeddings, 0
    tokenizer = PreTrainedTokenizerFast.from_pretrained(open_or_train_tokenizer(folder / "tokenizers", corpus, 8192))
    return tokenizer, lambda: torch.randn(len(tokenizer), 256, generator=torch.Generator().manual_seed(0)), 256


def measure(stage: str, folder: Path, model: str | None, lists: str, probes: int, rerank: int) -> dict[str, float]:
    """Time and memory of a stage, and what else it finds. The stages before it have been measured in this folder."""
    from dream.corpora.jsonl import JsonlCorpus
    from dream.encoders.static import StaticEncoder
    from dream.indexes.bm25 import BM25Index
    from dream.indexes.embedding import embed_corpus, open_shard
    from dream.indexes.exact import ExactIndex
    from dream.indexes.ivfpq import IVFPQIndex
    from dream.store.build import open_or_build
    from dream.store.ragged import pad_tokens
    from dream.store.store import ENCODER

    file = str(folder / "corpus.jsonl")
    corpus = JsonlCorpus("wiki", file, "_id", "title", ["text"], True, None, None, "error", 32, "english")
    tokenizer, embeddings_of_tokens, random_width = parts(corpus, folder, model)
    encoder = StaticEncoder(max_tokens=256, random_width=random_width, token_embedding_share=0.5, seed=0)
    encoder.adopt_tokenizer(tokenizer)
    meter = Meter()
    if stage == "prepare":
        with meter:
            open_or_build(folder / "stores", corpus, tokenizer, tokenizer, **CUTS)
        return meter.found
    store = open_or_build(folder / "stores", corpus, tokenizer, tokenizer, **CUTS)
    if stage == "bm25_build":
        with meter:
            BM25Index.open_or_build(store)
        return meter.found | {"passages": len(store.passages)}
    ids = np.random.default_rng(0).integers(len(store.windows), size=WINDOWS)
    if stage == "bm25_search":
        index = BM25Index.open_or_build(store)
        texts = [store.window_text(int(window))[0] for window in ids]
        index.search(texts, K)  # maps the file
        with meter:
            index.search(texts, K)
        return meter.found
    encoder.initialize(store, embeddings_of_tokens)
    width = encoder.width
    shards = folder / "shards"
    if stage == "embed":
        shards.mkdir()
        with meter:
            embed_corpus(shards, encoder, store, "cpu", 512, 32_768, "growth")
        return meter.found
    embeddings = [open_shard(path) for path in sorted(shards.glob("shard-*.npy"))]
    index = IVFPQIndex(lists, {"nprobe": probes}, rerank)
    if stage == "index_build":
        with meter:
            index.build(embeddings, len(store.passages), width)
        index.save(shards)
        return meter.found | {"bytes_per_passage": index.bytes_per_passage(width)}
    index.load(shards, embeddings)
    contexts = [store.window_tokens(int(window), ENCODER)[0] for window in ids]
    query_QD = encoder(pad_tokens(contexts, store.pad_ids[ENCODER]), "query").detach()
    index.search(query_QD, DEPTH)
    with meter:
        _, found_QK = index.search(query_QD, DEPTH)
    exact = ExactIndex(65_536, False)
    exact.build(embeddings, 0, 0)
    _, true_QK = exact.search(query_QD, DEPTH)
    both = [len(set(found) & set(true)) for found, true in zip(found_QK.tolist(), true_QK.tolist(), strict=True)]
    return meter.found | {"recall_at_100": float(np.mean(both)) / DEPTH}


class Meter:
    """Measures seconds, and peaks of memory in MB, of a block."""

    def __enter__(self) -> "Meter":
        self.before = memory_mb()
        self.peaks, self.start, self.cpu = Peaks(), time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        seconds = time.perf_counter() - self.start
        resident, anonymous = self.peaks.stop()
        self.found = {"seconds": seconds, "cpu_seconds": time.process_time() - self.cpu,
                      "peak_mb": resident - self.before[0],
                      "anonymous_mb": anonymous - self.before[1], "process_mb": anonymous}  # fmt: skip


def exponent(passages: list[float], costs: list[float]) -> float:
    """Slope of log(cost) over log(passages), by least squares."""
    usable = [(n, cost) for n, cost in zip(passages, costs, strict=True) if cost > 0]
    if len(usable) < 2:
        return float("nan")
    return float(np.polyfit(*np.log(np.array(usable)).T, deg=1)[0])


def table(rows: list[dict[str, dict[str, float]]]) -> list[str]:
    passages = [row["bm25_build"]["passages"] for row in rows]
    lines = [" ".join([f"{'':24}", *(f"{count:>12,.0f}" for count in passages), "  exponent"])]
    for stage in STAGES:
        for key, unit in (("seconds", "s"), ("peak_mb", "MB"), ("process_mb", "MB, whole")):
            costs = [row[stage][key] for row in rows]
            values = [f"{cost:12,.2f}" for cost in costs]
            lines.append(" ".join([f"{stage + ', ' + unit:24}", *values, f"{exponent(passages, costs):10.2f}"]))
    recall = [f"{row['index_search']['recall_at_100']:12.3f}" for row in rows]
    sizes = [f"{row['index_build']['bytes_per_passage']:12.0f}" for row in rows]
    return [*lines, " ".join([f"{'recall@100 of exact':24}", *recall]), " ".join([f"{'bytes a passage':24}", *sizes])]


def picture(rows: list[dict[str, dict[str, float]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    passages = [row["bm25_build"]["passages"] for row in rows]
    for axes, key, label in zip(figure.subplots(1, 2), ("seconds", "peak_mb"), ("seconds", "peak MB"), strict=True):
        for stage in STAGES:
            costs = [max(row[stage][key], 1e-3) for row in rows]
            axes.loglog(passages, costs, "o-", label=f"{stage.replace('_', ' ')} ({exponent(passages, costs):.2f})")
        axes.set_xlabel("passages")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, title="stage (exponent)", title_fontsize=7)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a large text file in UTF-8")
    parser.add_argument("--passages", type=int, nargs="+", default=[8_000, 16_000, 31_000, 62_000])
    parser.add_argument("--out", type=Path, default=Path("growth"), help="path of the results, without suffix")
    parser.add_argument("--folder", type=Path, help="folder of the temporary files; default: the system's")
    parser.add_argument("--factory", default="IVF{lists},PQ64", help="index.factory")
    parser.add_argument("--model", help="folder of a causal language model; default: random token embeddings")
    parser.add_argument("--probes", type=int, default=512, help="index.search_params.nprobe")
    parser.add_argument("--rerank", type=int, default=32, help="index.rerank")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        settings = options.model, options.factory, options.probes, options.rerank
        found = measure(options.stage, options.folder, *settings)
        print(json.dumps(found))
        return
    rows = []
    for count in options.passages:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_jsonl(options.text, Path(folder) / "corpus.jsonl", count * BYTES_OF_A_PASSAGE / 1e6)
            command = [sys.executable, __file__, "--folder", folder, "--factory", options.factory,
                       "--probes", str(options.probes), "--rerank", str(options.rerank),
                       *(["--model", options.model] if options.model else []), "--stage"]  # fmt: skip
            row = {}
            for stage in STAGES:
                done = subprocess.run([*command, stage], stdout=subprocess.PIPE, text=True, check=True)
                row[stage] = json.loads(done.stdout.splitlines()[-1])
                log.info(f"{count:,} {stage}: {row[stage]}")
            rows.append(row)
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
        picture(rows, options.out.with_suffix(".png"))
    log.info("\n".join(table(rows)))


if __name__ == "__main__":
    main()
