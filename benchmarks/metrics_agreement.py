"""Compares the metrics with those of trec_eval (ir-measures with pytrec_eval), for every query of every split.

    pip install 'dream-retrieval[bench]'
    python benchmarks/metrics_agreement.py DIR...          # folders in BEIR's layout

The ranking is made by BM25, in three variants: unchanged; with rounded scores, which gives many ties; and on a corpus
without every 20th document, so some relevant documents are missing. It prints the largest difference over all metrics
and queries.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np

from dream.corpora.jsonl import BeirCorpus
from dream.evaluation.benchmark import Benchmark
from dream.evaluation.labelled_queries import LabelledQueries
from dream.evaluation.metrics import Ranking, per_query_metrics
from dream.evaluation.outputs import write_run_file
from dream.indexes.bm25 import BM25Index
from dream.utils.logging import get_logger

log = get_logger(__name__)

MEASURES = {"ndcg_at_10": "nDCG@10", "recall_at_10": "R@10", "recall_at_100": "R@100", "mrr_at_10": "RR@10",
            "map_at_100": "AP@100", "success_at_1": "Success@1", "success_at_5": "Success@5"}  # fmt: skip


def without_some(folder: Path, copy: Path) -> Path:
    """A copy of the folder without every 20th document."""
    shutil.copytree(folder / "qrels", copy / "qrels")
    shutil.copy(folder / "queries.jsonl", copy)
    with (folder / "corpus.jsonl").open() as lines, (copy / "corpus.jsonl").open("w") as kept:
        kept.writelines(line for number, line in enumerate(lines) if number % 20)
    return copy


def rounded(ranking: Ranking) -> Ranking:
    """The ranking by rounded scores; ties are ordered by document row."""
    coarse = Ranking(ranking.rows_QR.copy(), np.round(ranking.score_QR))
    for rows, scores in zip(coarse.rows_QR, coarse.score_QR, strict=True):
        order = np.lexsort((np.where(rows < 0, np.iinfo(np.int64).max, rows), -scores))
        rows[:], scores[:] = rows[order], scores[order]
    return coarse


def largest_difference(ranking: Ranking, labelled: LabelledQueries, qrels: dict, file: Path) -> tuple[float, int]:
    """(largest difference of all metrics and queries, number of compared values)"""
    import ir_measures

    write_run_file(file, "bm25", ranking, labelled)
    run = list(ir_measures.read_trec_run(str(file)))
    place = {query: q for q, query in enumerate(labelled.judgements.query_ids)}
    worst, compared = 0.0, 0
    own_values = per_query_metrics(ranking, labelled.judgements)
    for metric, measure in MEASURES.items():
        for value in ir_measures.iter_calc([ir_measures.parse_measure(measure)], qrels, run):
            if value.query_id in place:
                worst = max(worst, abs(value.value - own_values[metric][place[value.query_id]]))
                compared += 1
    return worst, compared


def cases(folder: Path, data: Path) -> Iterator[tuple[str, str, Ranking, LabelledQueries, dict]]:
    """Yield (variant, split, ranking, labels, qrels of the files)."""
    corpora = {"unchanged": folder, "documents missing": without_some(folder, data / "lacking" / folder.name)}
    for variant, path in corpora.items():
        corpus = BeirCorpus("missing" if path != folder else "whole", str(path), False, "error", 32, "english")
        benchmark = Benchmark(corpus, data / folder.name, None, None)
        store = benchmark.store_of_words()
        index = BM25Index.open_or_build(store, "document")
        for split in corpus.splits():
            labelled = benchmark.labelled(store, split)
            ranking = labelled.by_bm25(index)
            qrels = corpus.labels(split).qrels
            yield variant, split, ranking, labelled, qrels
            if variant == "unchanged":
                yield "scores rounded", split, rounded(ranking), labelled, qrels


def _finite(scores: np.ndarray) -> np.ndarray:
    return scores[np.isfinite(scores)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders in BEIR's layout")
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for folder in parser.parse_args().folders:
            for number, (variant, split, ranking, labelled, qrels) in enumerate(cases(folder, Path(scratch))):
                file = Path(scratch) / f"{folder.name}-{number}.run"
                difference, compared = largest_difference(ranking, labelled, qrels, file)
                ties = sum(len(row) - len(np.unique(row)) for row in map(_finite, ranking.score_QR))
                missing = sum(map(len, labelled.judgements.missing))
                log.info(f"{folder.name:16} {split:6} {variant:18} {compared:7,} values, {ties:8,} ties, "
                      f"{missing:5,} relevant documents missing: largest difference {difference:.1e}")  # fmt: skip
                worst = max(worst, difference)
    log.info(f"largest of all: {worst:.1e}")


if __name__ == "__main__":
    main()
