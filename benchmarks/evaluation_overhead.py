"""Measures the share of an evaluation's processor time that is not spent in the encoder's forward pass.

    pip install 'dream-retrieval[bench]'
    python benchmarks/evaluation_overhead.py DIR --st NAME_OR_PATH --documents 500 --queries 100

Further arguments are overrides of dream-evaluate, e.g. st.dtype=bfloat16. With paths.run=DIR, its files are kept.

The overhead is tokenising, cutting, writing shards, searching, scoring, resampling and plotting. Parts of it do not
depend on documents or queries (imports, loading the weights, plots), so the share is smaller for larger corpora.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

import dream.utils.runtime
from dream.utils.logging import get_logger

log = get_logger(__name__)


def part_of(folder: Path, documents: int, queries: int, split: str, copy: Path) -> Path:
    """A copy with the folder's first documents and the split's first queries."""
    (copy / "qrels").mkdir(parents=True)
    header, *labels = (folder / "qrels" / f"{split}.tsv").read_text().splitlines(keepends=True)
    (copy / "qrels" / f"{split}.tsv").write_text("".join([header, *labels[:queries]]))
    (copy / "queries.jsonl").write_text((folder / "queries.jsonl").read_text())
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (copy / "corpus.jsonl").write_text("".join(lines[:documents]))
    return copy


def time_forward() -> dict[str, Any]:
    """Patch sentence-transformers' forward to count its processor seconds and texts in the returned dictionary."""
    from sentence_transformers import SentenceTransformer

    spent: dict[str, Any] = {"seconds": 0.0, "texts": 0}
    forward = SentenceTransformer.forward

    def timed(self: Any, features: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return forward(self, features, *args, **kwargs)
        finally:
            spent["seconds"] += time.process_time() - began
            spent["texts"] += len(features["input_ids"])

    SentenceTransformer.forward = timed  # type: ignore[method-assign]
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="in BEIR's layout")
    parser.add_argument("--st", required=True, help="a sentence-transformers model")
    parser.add_argument("--split", default="test")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--queries", type=int, default=100)
    chosen, overrides = parser.parse_known_args()
    spent = time_forward()
    from dream.commands.evaluate import evaluate

    with (
        tempfile.TemporaryDirectory() as scratch,
        initialize_config_dir(str(dream.utils.runtime.CONFIG_DIR), version_base="1.3"),
    ):
        folder = part_of(chosen.folder, chosen.documents, chosen.queries, chosen.split, Path(scratch) / "part")
        words = ["corpus=beir", f"corpus.path={folder}", f"split={chosen.split}", "device=cpu",
                 f"systems=[bm25,'st:{chosen.st}','hybrid:st:{chosen.st}']", f"paths.data={scratch}/data",
                 f"paths.logs={scratch}/logs", f"paths.run={scratch}/logs/evaluation", *overrides]  # fmt: skip
        cfg = compose("evaluate", words)
        began = time.process_time()
        evaluate(cfg)
        whole = time.process_time() - began
        seconds = json.loads((Path(cfg.paths.run) / "results.json").read_text())["seconds"]
    log.info(f"{chosen.documents:,} documents, {spent['texts']:,} texts through the encoder: {whole:.1f} s of "
             f"processor time, {spent['seconds']:.1f} s in the forward, {1 - spent['seconds'] / whole:.1%} "
             "outside")  # fmt: skip
    log.info(f"wall seconds by system: {seconds}")


if __name__ == "__main__":
    main()
