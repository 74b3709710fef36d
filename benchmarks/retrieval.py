"""Search, refresh and evaluation of a finished run against the least that the same work needs.

    pip install numba                               # the fastest backend of bm25s
    python benchmarks/retrieval.py --run logs/latest [--split test]

1. BM25 candidates of 256 windows against `bm25s.retrieve` with its numba backend: the same words, equal scores.
2. A refresh (embed, hash, write, index, overlap) against the embedding of the same batches alone. The least that a
   snapshot needs, which survives a crash, is the embedding and its files written and flushed to disk.
3. The evaluation of a split's queries against their matrix product with all passages and the best 200 of it.
"""

import argparse
import os
import tempfile
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import bm25s
import numpy as np
import torch
from hydra.utils import instantiate

from dream.evaluation.labelled_queries import LabelledQueries
from dream.indexes.bm25 import BM25Index, passage_texts
from dream.indexes.snapshot import IndexHandle
from dream.runs.load import FinishedRun, open_run
from dream.store.permutation import permute
from dream.store.store import ENCODER
from dream.utils.logging import get_logger
from side_by_side import Row, alternate, record

log = get_logger(__name__)

WINDOWS, K, BATCH, DEPTH = 256, 16, 512, 200


def candidates(run: FinishedRun) -> Row:
    index = BM25Index.open_or_build(run.store)
    windows = permute(0, np.arange(WINDOWS), len(run.store.windows)).tolist()
    contexts = [run.store.window_text(window)[0] for window in windows]
    peer = bm25s.BM25(k1=1.2, b=0.75, backend="numba")
    peer.index([index.analyze(text) for text in passage_texts(run.store)], show_progress=False)
    words = [[word for word in index.analyze(context) if word in peer.vocab_dict] for context in contexts]

    def retrieve() -> np.ndarray:
        [index.analyze(context) for context in contexts]  # as much as our search does
        return peer.retrieve(words, k=K, show_progress=False, n_threads=torch.get_num_threads()).scores

    seconds = alternate({"dream": lambda: index.search(contexts, K), "bm25s": retrieve})
    ours_QK, theirs_QK = index.search(contexts, K)[0], retrieve()
    difference = np.abs(np.where(np.isfinite(ours_QK), ours_QK, 0) - theirs_QK).max()
    return Row(f"BM25 candidates of {WINDOWS} windows, {len(run.store.passages):,} passages",
               f"with numba: {1000 * seconds['dream']:.0f} ms", f"bm25s with numba: {1000 * seconds['bm25s']:.0f} ms",
               seconds["bm25s"] / seconds["dream"], 1.0,
               floor=f"largest difference of a score {difference:.1e}")  # fmt: skip


def refresh(run: FinishedRun, scratch: Path) -> Row:
    """Refreshes continue from the last snapshot, so the overlap is measured, too."""
    encoder, store = run.encoder.eval(), run.store
    handle, step = IndexHandle(run.index.index, scratch / "index"), iter(range(100))

    @torch.inference_mode()
    def embed() -> None:
        ranges = store.passages["tokens"][:, ENCODER]
        order = np.argsort(ranges[:, 1] - ranges[:, 0], kind="stable")
        for block in np.split(order, range(BATCH, len(order), BATCH)):
            encoder.embed_passages(store, block, "cpu")

    content = os.urandom(2**20)

    def write() -> None:
        for number, size in enumerate(sizes):
            with (scratch / f"file-{number}").open("wb") as file:
                file.writelines([content] * (size // len(content)))
                file.flush()
                os.fsync(file.fileno())

    def again() -> None:
        with torch.no_grad():  # other weights, as after some steps
            next(iter(encoder.parameters())).mul_(1.0001)
        handle.refresh(encoder, store, next(step), "cpu", BATCH)
        handle.prune(set())

    again()
    assert handle.current is not None
    sizes = [file.stat().st_size for file in handle.current.path.iterdir()]
    seconds = alternate({"dream": again, "alone": embed, "write": write})
    least, written = seconds["alone"] + seconds["write"], sum(sizes) / 2**20
    return Row(f"refresh of {len(store.passages):,} passages, {type(encoder).__name__}", f"{seconds['dream']:.2f} s",
               f"embedding alone: {seconds['alone']:.2f} s", seconds["dream"] / seconds["alone"], 1.15, at_most=True,
               floor=f"writing its {written:,.0f} MiB alone takes {seconds['write']:.2f} s; the refresh takes "
               f"{seconds['dream'] / least:.2f} times as long as embedding and writing")  # fmt: skip


def evaluation(run: FinishedRun, split: str) -> Row:
    queries = LabelledQueries(instantiate(run.cfg.corpus), run.store, split)
    assert run.index.current is not None
    passage_ND = torch.from_numpy(np.concatenate([np.asarray(shard) for shard in run.index.current.embeddings])).float()
    query_QD = run.encoder.embed_queries(list(queries.queries))

    def evaluate() -> dict[str, float]:
        return queries.score(queries.by_encoder(run.encoder, run.index))

    def least() -> None:
        for block_QD in query_QD.split(256):
            (block_QD @ passage_ND.T).topk(DEPTH)

    seconds = alternate({"dream": evaluate, "product and best": least})
    return Row(f"evaluation of {len(queries):,} queries, {len(passage_ND):,} passages × {passage_ND.shape[1]}",
               f"{seconds['dream']:.2f} s", f"matrix product and best {DEPTH}: {seconds['product and best']:.2f} s",
               seconds["dream"] / seconds["product and best"], 2.0, at_most=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    opened = open_run(options.run)
    current = opened.index.current
    assert current is not None
    opened.index = IndexHandle(instantiate(opened.cfg.index), current.path.parent)  # for many queries at once
    opened.index.open(current.path, opened.store)
    rows = [candidates(opened), evaluation(opened, options.split)]
    with tempfile.TemporaryDirectory() as temporary:
        rows.append(refresh(opened, Path(temporary)))
    record("retrieval", rows)
