"""Compares the metrics of dream-evaluate with those of mteb, on a folder in BEIR's layout.

    pip install 'dream-retrieval[bench]'
    python benchmarks/mteb_agreement.py DIR --run logs/latest --split test
    python benchmarks/mteb_agreement.py DIR --st NAME_OR_PATH --documents 500    # a published model

Both embed only the beginning of each document. mteb rounds to five decimal places, so a difference of 5e-6 is full
agreement.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import dream.utils.runtime
from dream.corpora.base import Corpus
from dream.encoders.base import Encoder
from dream.encoders.sentence_transformer import SentenceTransformerEncoder
from dream.evaluation.benchmark import Benchmark
from dream.evaluation.metrics import mean_metrics, per_query_metrics
from dream.evaluation.mteb_adapter import DreamEncoder
from dream.indexes.exact import ExactIndex
from dream.utils.logging import get_logger

log = get_logger(__name__)

SHARED = ("ndcg_at_10", "recall_at_10", "recall_at_100", "mrr_at_10", "map_at_100")


def shortened(folder: Path, documents: int | None, copy: Path) -> Path:
    """A copy with only the first documents. Labels of the other documents are kept and count as not found."""
    import shutil

    shutil.copytree(folder / "qrels", copy / "qrels")
    shutil.copy(folder / "queries.jsonl", copy)
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (copy / "corpus.jsonl").write_text("".join(lines[:documents]))
    return copy


def corpus_of(folder: Path) -> Corpus:
    """The corpus as `dream-evaluate corpus=beir` opens it."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(dream.utils.runtime.CONFIG_DIR), version_base="1.3"):
        cfg = compose("evaluate", ["corpus=beir", f"corpus.path={folder}", "paths.run=."])
    return instantiate(cfg.corpus, deduplicate=cfg.deduplicate)


def task_of(folder: Path, split: str) -> Any:
    """The same documents, queries and labels as a retrieval task of mteb."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    corpus = corpus_of(folder)
    labels = corpus.labels(split)
    relevant = {query: graded for query, graded in labels.qrels.items() if max(graded.values()) > 0}

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalFolder", description="a folder in BEIR's layout", type="Retrieval", eval_splits=[split],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10", dataset={"path": str(folder), "revision": "local"},
        )  # fmt: skip

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            documents = [{"id": d.id, "title": "", "text": d.text} for d in corpus.documents()]
            queries = [{"id": query, "text": labels.queries[query]} for query in relevant]
            data = {"corpus": Dataset.from_list(documents), "queries": Dataset.from_list(queries),
                    "relevant_docs": relevant, "top_ranked": None}  # fmt: skip
            self.dataset = {"default": {split: data}}
            self.data_loaded = True

    return Local()


def mteb_metrics(model: Any, folder: Path, split: str, batch: int) -> dict[str, float]:
    """Metrics by mteb."""
    import mteb

    result = mteb.evaluate(model, [task_of(folder, split)], cache=None, encode_kwargs={"batch_size": batch})
    return result.task_results[0].scores[split][0]


def dream_metrics(encoder: Encoder, folder: Path, split: str, data: Path, batch: int) -> dict[str, float]:
    """Metrics by dream-evaluate."""
    benchmark = Benchmark(corpus_of(folder), data, encoder.max_tokens, 1)
    store = benchmark.store(encoder, encoder.max_tokens)
    labelled = benchmark.labelled(store, split)
    handle = benchmark.embedded(encoder, store, ExactIndex(65_536, True), batch, 4096)
    return mean_metrics(per_query_metrics(labelled.by_encoder(encoder, handle), labelled.judgements))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="in BEIR's layout")
    parser.add_argument("--run", default="logs/latest", help="folder of a finished run")
    parser.add_argument("--st", help="a sentence-transformers model instead of the run")
    parser.add_argument("--split", default="test")
    parser.add_argument("--documents", type=int, help="number of documents to use; default: all")
    parser.add_argument("--batch", type=int, default=32, help="texts in a forward of the encoder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (part := Path(scratch) / "part").mkdir()
        folder = shortened(chosen.folder, chosen.documents, part)
        if chosen.st:
            import mteb

            encoder: Encoder = SentenceTransformerEncoder(chosen.st, None, None, "float32", False).eval()
            model: Any = mteb.SentenceTransformerEncoderWrapper(encoder.model)
        else:
            model = DreamEncoder(chosen.run)
            encoder = model.encoder
        by_mteb = mteb_metrics(model, folder, chosen.split, chosen.batch)
        by_dream = dream_metrics(encoder, folder, chosen.split, Path(scratch) / "data", chosen.batch)
    for metric in SHARED:
        difference = abs(by_mteb[metric] - by_dream[metric])
        log.info(f"{metric:14} mteb {by_mteb[metric]:.5f}  dream-evaluate {by_dream[metric]:.5f}  "
                 f"difference {difference:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
