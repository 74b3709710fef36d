"""Without labels: does the language model know which document a piece of text belongs to?

The query is a sentence of a document. The candidates are another passage of the same document, and the best passages of
other documents by BM25. A language model that knows something about the corpus predicts the sentence best after the
passage of its own document. It must find it among the passages that share most words with the sentence.

Shape suffixes: Q windows (pseudo-queries), R candidates, N passages of the store.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from dream.corpora.base import Corpus
from dream.evaluation.benchmark import Benchmark
from dream.evaluation.fusion import ordered
from dream.evaluation.metrics import Judgements, Ranking, per_query_metrics
from dream.evaluation.reranking import open_ranker
from dream.evaluation.results import Results, rows_of
from dream.evaluation.settings import EvaluationSettings
from dream.evaluation.system_names import is_tuned, reranked, short_names, teachers_of
from dream.indexes.bm25 import BM25Index, top_k
from dream.runs.load import open_config
from dream.store.permutation import permute, random_bits
from dream.store.store import Store
from dream.utils.errors import require, require_count

LEAST_WORDS, MOST_WORDS = 6, 32  # of a pseudo-query; longer sentences are cut at their end
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


@dataclass(frozen=True)
class HeldOutWindows:
    """Pseudo-queries with their candidates.

    Attributes:
        judgements: the pseudo-queries; the only relevant document is the own one. Ids are `document:passage`.
        by_bm25: the documents of the R candidates in BM25's order.
        passages_QR: their passages, in the same order.
    """

    judgements: Judgements
    by_bm25: Ranking
    passages_QR: np.ndarray


def compare(
    settings: EvaluationSettings, runs: Sequence[Path], corpus: Corpus | None, count: int
) -> tuple[Results, HeldOutWindows, dict[str, Any]]:
    """(results of BM25 and of a language model, the windows, facts for results.json)

    Args:
        settings: settings of the evaluation. Its systems are `bm25` and one language model.
        runs: folders of finished runs; at least one if corpus or language model are those of a run.
        corpus: the corpus; None: the first run's.
        count: maximum number of windows.

    Raises:
        ConfigError: other systems are named, or the corpus has no such windows.
    """
    require_count("windows", count)
    models = [system for system in teachers_of(settings.systems) if not is_tuned(system)]
    fits = len(models) == 1 and set(settings.systems) == {"bm25", *models}
    require(fits, "systems", list(settings.systems), "windows compares BM25 with one language model: choose [bm25,lm] "
            "or [bm25,lm:hf:NAME], or windows=null for labelled queries")  # fmt: skip
    if corpus is None:
        corpus = instantiate(open_config(runs[0], settings.trust, settings.data).corpus)
    benchmark = Benchmark(corpus, settings.data, None, settings.passages_per_document)
    lm = reranked(models[0])
    assert lm is not None
    ranker = open_ranker(lm.model, settings, runs, benchmark)
    windows = draw_windows(ranker.store, count, settings.lm.k, settings.sampling.seed)
    loglik_QR = ranker.loglik(windows.judgements.queries, windows.passages_QR)
    names = short_names(settings.systems)
    by_system = {"bm25": windows.by_bm25, models[0]: ordered(windows.by_bm25.rows_QR, loglik_QR)}
    rankings = {names[system]: by_system[system] for system in settings.systems}
    values = {row: [per_query_metrics(ranking, windows.judgements)] for row, ranking in rankings.items()}
    results = Results.of(rows_of(values, []), settings.metric, names[settings.baseline], settings.sampling, [])
    results.notes += report(results, names[models[0]], rankings, windows)
    about = {"corpus": corpus.name, "windows": len(windows.judgements), "candidates": windows.passages_QR.shape[1],
             "runs": [str(run.resolve()) for run in runs], "names": names}  # fmt: skip
    return results, windows, about


def draw_windows(store: Store, count: int, k: int, seed: int) -> HeldOutWindows:
    """Draw sentences of different documents, each with k candidates: one passage of its own document, k - 1 others.

    The passage of the own document is the best by BM25 among those that do not contain the sentence. Each of the other
    candidates is the best passage of its document. Windows with fewer than k candidates are left out.

    Raises:
        ConfigError: the corpus has no such window.
    """
    index = BM25Index.open_or_build(store)
    first_N, end_N = store.passages_of(np.arange(len(store.texts)))
    documents = np.flatnonzero(end_N - first_N > 1)
    judgements, ranking = Judgements([], [], [], [], 0), Ranking.empty(count, k)
    passages_QR = np.full((count, k), -1)
    for document in documents[permute(seed, np.arange(len(documents)), len(documents))] if len(documents) else ():
        first = int(first_N[document])
        own = np.arange(first, end_N[document])
        held_out = own[int(random_bits(seed, 0, document)) % len(own)]
        sentence = _sentence(store.passage_text(int(held_out)), int(random_bits(seed, 1, document)))
        ids, scores = _candidates(index.scores_of(sentence), store.passage_documents, own[own != held_out], own, k)
        if sentence and len(ids) == k:
            q = len(judgements)
            passages_QR[q], ranking.rows_QR[q], ranking.score_QR[q] = ids, store.passage_documents[ids], scores
            judgements.query_ids.append(f"{store.document_names[int(document)]}:{held_out - first}")
            judgements.queries.append(sentence)
            judgements.grades.append({int(document): 1})
            judgements.missing.append({})
        if len(judgements) == count:
            break
    found = len(judgements)
    require(found > 0, "windows", count, f"no document of this corpus has two passages and {k - 1} neighbours; lower "
            "lm.scoring.max_passage_tokens or lm.k")  # fmt: skip
    return HeldOutWindows(judgements, Ranking(ranking.rows_QR[:found], ranking.score_QR[:found]), passages_QR[:found])


def _sentence(text: str, draw: int) -> str:
    """One of the text's sentences of at least `LEAST_WORDS` words. Empty if it has none."""
    sentences = [words for part in SENTENCE_END.split(text) if len(words := part.split()) >= LEAST_WORDS]
    return " ".join(sentences[draw % len(sentences)][:MOST_WORDS]) if sentences else ""


def _candidates(
    scores_N: np.ndarray, documents_N: np.ndarray, usable: np.ndarray, own: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(passage ids of at most k candidates in BM25's order, their scores)

    Args:
        scores_N: BM25's scores of all passages.
        documents_N: document of each passage.
        usable: passages of the own document without the sentence.
        own: all passages of the own document.
        k: number of candidates.
    """
    best_own = usable[scores_N[usable].argmax()]
    others_N = scores_N.copy()
    others_N[own] = 0
    _, ids = top_k(others_N, k * 10)
    firsts = np.sort(np.unique(documents_N[ids], return_index=True)[1])[: k - 1]
    chosen = np.append(ids[firsts], best_own)
    chosen = chosen[np.lexsort((chosen, -scores_N[chosen]))]
    return chosen, scores_N[chosen]


def report(results: Results, row: str, rankings: dict[str, Ranking], windows: HeldOutWindows) -> list[str]:
    """Sentences about one language model: how often it ranks the passage of the own document first.

    Args:
        results: metrics of BM25 and of the language model.
        row: the language model's row.
        rankings: row → ranking of the candidates.
        windows: the windows with their candidates.
    """
    k = windows.passages_QR.shape[1]
    own_Q1 = np.array([[next(iter(grades))] for grades in windows.judgements.grades])
    ranks = {name: float(((ranking.rows_QR == own_Q1).argmax(1) + 1).mean()) for name, ranking in rankings.items()}
    others = [name for name in rankings if name != row]
    low, high = results.intervals[row]["success_at_1"]
    share = f"{results.sampling.confidence:.0%}"
    first = "; ".join([*(f"{name} {results.mean(name, 'success_at_1'):.1%}" for name in others), f"chance {1 / k:.1%}"])
    chance = sum(1 / rank for rank in range(1, min(k, 10) + 1)) / k
    mrr = "; ".join([*(f"{name} {results.mean(name, 'mrr_at_10'):.3f}" for name in others), f"chance {chance:.3f}"])
    mrr_low, mrr_high = results.intervals[row]["mrr_at_10"]
    mean_ranks = "; ".join([*(f"{name} {ranks[name]:.1f}" for name in others), f"chance {(k + 1) / 2:.1f}"])
    known = "more than chance" if low > 1 / k else "no more than chance"
    return [
        f"{row} knows {known} about this corpus: of {k} passages it ranks the one of the window's own document first "
        f"for {results.mean(row, 'success_at_1'):.1%} of the windows ({share}: {low:.1%} to {high:.1%}; {first}).",
        f"{row}: MRR@10 {results.mean(row, 'mrr_at_10'):.3f} ({share}: {mrr_low:.3f} to {mrr_high:.3f}; {mrr}), mean "
        f"rank {ranks[row]:.1f} of {k} ({mean_ranks}).",
        "The other passages are those that BM25 finds best among all other documents, which is hard for BM25 itself.",
    ]  # fmt: skip
