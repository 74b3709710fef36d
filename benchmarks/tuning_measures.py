"""Measures without labels, as stand-ins for nDCG@10 on labels: how well do they order the trials of a study?

  dream-tune experiment=questions corpus=beir corpus.path=DIR trials=12 keep=all     # once for each corpus with labels
  python benchmarks/tuning_measures.py STUDY_FOLDER...

For each trial, its summary has nDCG@10 on the labels of the dev split. Without labels, this script measures:

  questions    nDCG@10 on the questions of the language model that were not trained on
  windows      nDCG@10 of a window's own document, whose passages that overlap the window are left out
  loglik       log p(question | first passage) by the language model, in nats, for these questions
  train loss   minus the loss of the last steps

Spearman's correlation of each with the labels over the trials of a study has a 95 % bootstrap interval over trials.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from dream.evaluation.labelled_queries import HeldOutQuestions, LabelledQueries
from dream.evaluation.reranking import LanguageModelRanker
from dream.evaluation.searcher import Searcher
from dream.serving.gain import open_language_model
from dream.store.questions import Questions

WINDOWS = 500
DEPTH = 200  # passages searched for a window
RESAMPLES = 2000


def of_windows(searcher: Searcher) -> float:
    """nDCG@10 of the own document of windows that are spread over the store."""
    store = searcher.store
    windows = np.unique(np.linspace(0, len(store.windows) - 1, WINDOWS).astype(int))
    queries = searcher.encoder.embed_queries([store.window_text(int(window))[0] for window in windows])
    _, ids_QK = searcher.run.index.search(queries, DEPTH)
    gains = []
    for window, ids_K in zip(store.windows[windows], ids_QK.numpy(), strict=True):
        rows = store.passages[ids_K[ids_K >= 0]]
        start, _, end = window["characters"]
        own = rows["document"] == window["document"]
        overlaps = own & (rows["characters"][:, 0] < end) & (rows["characters"][:, 1] > start)
        documents = list(dict.fromkeys(rows["document"][~overlaps].tolist()))[:10]
        if (store.passage_documents == window["document"]).sum() > 1:  # otherwise no passage is left
            own_rank = documents.index(window["document"]) if window["document"] in documents else None
            gains.append(0.0 if own_rank is None else 1 / np.log2(own_rank + 2))
    return float(np.mean(gains))


def measure(run: Path, questions: Path, ranker: LanguageModelRanker) -> dict[str, float]:
    """All measures of one trial."""
    searcher = Searcher(run)
    summary = json.loads((run / "summary.json").read_text())
    searcher.store.ask(Questions(questions))
    held_out = HeldOutQuestions(searcher.store)
    labelled = LabelledQueries(held_out, searcher.store, held_out.name)
    ranking = labelled.by_encoder(searcher.encoder, searcher.run.index)
    values = {"labels": summary["trained/ndcg_at_10"], "questions": labelled.score(ranking)["ndcg_at_10"]}
    queries = list(labelled.queries)
    passages_Q1 = ranker.best_passages(queries, ranking.rows_QR[:, :1])
    loglik = float(ranker.loglik(queries, passages_Q1).mean())
    return values | {"windows": of_windows(searcher), "loglik": loglik, "train loss": -summary["train/loss"]}


def spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """(correlation, lower and upper end of its interval)"""
    draw = np.random.default_rng(0)
    resampled = []
    for _ in range(RESAMPLES):
        rows = draw.integers(0, len(x), len(x))
        if len(set(x[rows])) > 1 and len(set(y[rows])) > 1:
            resampled.append(spearmanr(x[rows], y[rows]).statistic)
    return spearmanr(x, y).statistic, *np.percentile(resampled, [2.5, 97.5])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="folders of dream-tune with keep=all")
    torch.set_grad_enabled(False)
    for study in parser.parse_args().studies:
        trials = [run for run in sorted(study.glob("trial-*")) if (run / "summary.json").is_file()]
        searcher = Searcher(trials[0])
        (questions,) = searcher.store.cache_folder("questions").glob(f"{searcher.corpus_name}-*")
        ranker = open_language_model(searcher, trials[0])
        rows = []
        for run in trials:
            rows.append(measure(run, questions, ranker))
            print(run.name, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        print(f"\n{study}: {len(rows)} trials, labels {columns['labels'].min():.4f} to {columns['labels'].max():.4f}")
        for name in list(columns)[1:]:
            found, low, high = spearman(columns[name], columns["labels"])
            best = columns["labels"][columns[name].argmax()]
            print(
                f"  {name:11} Spearman {found:+.2f} [{low:+.2f}, {high:+.2f}]; its best trial has {best:.4f} on labels"
            )


if __name__ == "__main__":
    main()
