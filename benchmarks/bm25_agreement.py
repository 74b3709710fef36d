"""Compares BM25 with other engines on labelled corpora: nDCG@10 of each, and how many of the ten best documents agree.

    pip install tantivy                                        # English stems, no stop words
    pip install --no-deps --target FOLDER pyserini pyjnius     # optional: Lucene with its English analyser; needs Java
    PYTHONPATH=FOLDER python benchmarks/bm25_agreement.py FOLDER_IN_BEIRS_LAYOUT … [--split test]

All engines rank whole documents with k1 1.2 and b 0.75. Engines that are not installed are left out. Lucene rounds the
lengths of documents, splits words as Unicode does, and stems by Porter's first algorithm.
"""

import argparse
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np

from dream.corpora.jsonl import BeirCorpus
from dream.evaluation.benchmark import Benchmark
from dream.evaluation.labelled_queries import LabelledQueries
from dream.evaluation.metrics import Ranking
from dream.indexes.bm25 import K1, B, BM25Index
from dream.utils.logging import get_logger

log = get_logger(__name__)

DEPTH = 10  # documents that are compared


def ranking_of(rows: list[list[int]]) -> Ranking:
    """A ranking of document rows, best first, without the engine's scores."""
    ranking = Ranking.empty(len(rows), DEPTH)
    for q, found in enumerate(rows):
        ranking.rows_QR[q, : len(found)] = found
        ranking.score_QR[q, : len(found)] = -np.arange(len(found))
    return ranking


def by_tantivy(texts: list[str], queries: list[str]) -> list[list[int]]:
    """Document rows of the ten best by tantivy's tokenizer `en_stem`."""
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="en_stem")
    builder.add_unsigned_field("row", stored=True)
    index = tantivy.Index(builder.build())
    writer = index.writer(num_threads=1)
    for row, text in enumerate(texts):
        writer.add_document(tantivy.Document(text=text, row=row))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()
    found = []
    for query in queries:
        parsed = index.parse_query(" ".join(re.findall(r"\w+", query.lower().replace("_", " "))), ["text"])
        hits = searcher.search(parsed, DEPTH).hits
        found.append([searcher.doc(address)["row"][0] for _, address in hits])
    return found


def by_lucene(texts: list[str], queries: list[str]) -> list[list[int]]:
    """Document rows of the ten best by Lucene's EnglishAnalyzer and BM25Similarity, from Anserini's jar."""
    import jnius_config

    [package] = importlib.util.find_spec("pyserini").submodule_search_locations  # type: ignore[union-attr,misc]
    if not jnius_config.vm_running:  # else an earlier call has set the path
        jnius_config.set_classpath(str(next(Path(package).glob("resources/jars/*fatjar.jar"))))
    from jnius import autoclass, cast

    def lucene(name: str) -> Any:
        return autoclass(f"org.apache.lucene.{name}")

    analyzer, directory = lucene("analysis.en.EnglishAnalyzer")(), lucene("store.ByteBuffersDirectory")()
    similarity = lucene("search.similarities.BM25Similarity")(K1, B)
    config = lucene("index.IndexWriterConfig")(analyzer)
    config.setSimilarity(similarity)
    writer = lucene("index.IndexWriter")(directory, config)
    new_document, new_field = lucene("document.Document"), lucene("document.TextField")
    store = autoclass("org.apache.lucene.document.Field$Store")
    for text in texts:
        document = new_document()
        document.add(new_field("text", text, store.NO))
        writer.addDocument(document)
    writer.forceMerge(1)
    writer.close()
    reader = lucene("index.DirectoryReader").open(directory)
    searcher = lucene("search.IndexSearcher")(cast("org.apache.lucene.index.IndexReader", reader))
    searcher.setSimilarity(similarity)
    parsed = lucene("util.QueryBuilder")(analyzer)
    found = []
    for query in queries:
        words = parsed.createBooleanQuery("text", query)
        hits = searcher.search(words, DEPTH).scoreDocs if words else []
        found.append([hit.doc for hit in hits])
    return found


ENGINES = {"tantivy": ("tantivy", by_tantivy), "lucene": ("jnius_config", by_lucene)}


def overlap(ours: Ranking, theirs: Ranking) -> np.ndarray:
    """For each query, the share of our ten best documents that are also among theirs."""
    pairs = zip(ours.rows_QR[:, :DEPTH], theirs.rows_QR[:, :DEPTH], strict=True)
    return np.array([len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(1, (a >= 0).sum()) for a, b in pairs])


def rankings(folder: Path, split: str, scratch: Path) -> Iterator[tuple[str, Ranking, LabelledQueries]]:
    """(engine, its ranking, the queries); ours first."""
    corpus = BeirCorpus(folder.name, str(folder), False, "error", 32, "english")
    benchmark = Benchmark(corpus, scratch, None, None)
    store = benchmark.store_of_words()
    labelled = benchmark.labelled(store, split)
    yield "dream", labelled.by_bm25(BM25Index.open_or_build(store, "document")), labelled
    texts = [store.texts[row] for row in range(len(store.texts))]
    for name, (package, rank) in ENGINES.items():
        if importlib.util.find_spec(package):
            yield name, ranking_of(rank(texts, list(labelled.queries))), labelled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders in BEIR's layout")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for folder in options.folders:
            ours = None
            for engine, ranking, labelled in rankings(folder, options.split, Path(scratch)):
                ours = ours or ranking
                score = labelled.score(ranking)["ndcg_at_10"]
                shares = overlap(ours, ranking)
                same_first = (ours.rows_QR[:, 0] == ranking.rows_QR[:, 0]).mean()
                log.info(f"{folder.name:16} {engine:8} nDCG@10 {score:.4f}, overlap of the ten best "
                         f"{shares.mean():.3f}, same first document {same_first:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
