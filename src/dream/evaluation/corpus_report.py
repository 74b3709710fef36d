"""Describes a corpus before training: lengths, copies, scripts, languages, windows and their BM25 candidates.

Shapes: N documents, W windows.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from dream.indexes.bm25 import BM25Index
from dream.indexes.near_copies import find_groups
from dream.store.store import ENCODER, Store

QUANTILES = {"min": 0, "5 %": 5, "median": 50, "95 %": 95, "max": 100}
SAMPLED_CHARACTERS = 2_000  # of a document whose script and language are determined
LANGUAGE_PACKAGE = "py3langid"
# Unicode's names of letters begin with the script; these scripts are written together.
JOINED = {"CJK": "Han", "HIRAGANA": "Japanese kana", "KATAKANA": "Japanese kana"}


def document_tokens(store: Store) -> np.ndarray:
    """Encoder tokens of each document; int64, (N,)."""
    starts_P, ends_P = store.passages["tokens"][:, ENCODER].T
    counts_N = np.bincount(store.passage_documents, ends_P - starts_P, minlength=len(store.texts))
    return counts_N.astype(np.int64)


def windows_per_document(store: Store) -> np.ndarray:
    """Number of windows of each document; int64, (N,)."""
    return np.bincount(store.windows["document"], minlength=len(store.texts))


def describe(store: Store, near_copy: float, sampled: int) -> dict[str, Any]:
    """Counts, lengths, copies, scripts and languages of a store's documents, as JSON values.

    Args:
        near_copy: lowest Jaccard similarity of near copies.
        sampled: number of documents, spread evenly, of which scripts and languages are determined.
    """
    group_N = find_groups(store, "document", near_copy)
    rows = np.unique(np.linspace(0, len(store.texts) - 1, min(sampled, len(store.texts))).astype(int))
    texts = [store.texts[int(row)][:SAMPLED_CHARACTERS] for row in rows]
    return {
        "counts": {**store.manifest["counts"], "near_copies": int(len(group_N) - len(np.unique(group_N)))},
        "refused": store.manifest["refused"],
        "tokens_per_document": spread(document_tokens(store)),
        "passages_per_document": spread(np.bincount(store.passage_documents, minlength=len(store.texts))),
        "windows_per_document": spread(windows_per_document(store)),
        "sampled_documents": len(texts),
        "scripts": scripts(texts),
        "languages": languages(texts),
    }


def spread(values_N: np.ndarray) -> dict[str, float]:
    """Mean and quantiles."""
    quantiles = {name: float(np.percentile(values_N, at)) for name, at in QUANTILES.items()}
    return {"mean": round(float(values_N.mean()), 1), **quantiles}


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Share of each script among the letters, largest first."""
    counts = Counter(map(_script, filter(str.isalpha, "".join(texts))))
    return {name: round(count / counts.total(), 4) for name, count in counts.most_common()}


@cache
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "unknown").partition(" ")[0]
    return JOINED.get(first, first.capitalize())


def languages(texts: list[str]) -> dict[str, float] | None:
    """Share of each language (ISO 639-1) among the texts, largest first; None if no detector is installed."""
    if find_spec(LANGUAGE_PACKAGE) is None:
        return None
    import py3langid

    counts = Counter(py3langid.classify(text)[0] for text in texts if text.strip())
    return {name: round(count / counts.total(), 4) for name, count in counts.most_common()}


def windows_with_candidates(store: Store, window_ids_W: np.ndarray, shown: int) -> list[dict[str, Any]]:
    """Windows with their best BM25 candidates from other documents, as JSON values.

    Args:
        window_ids_W: ids of the windows.
        shown: candidates of each window.
    """
    index = BM25Index.open_or_build(store)
    owned_N = np.bincount(store.passage_documents)
    found = []
    for window in window_ids_W.tolist():
        context, target = store.window_text(window)
        document = store.document_of(window)
        scores_K, ids_K = (row[0] for row in index.search([context], shown + int(owned_N[document])))
        candidates = [
            {"document": store.document_names[int(store.passage_documents[passage])], "score": round(float(score), 2),
             "text": store.passage_text(passage)}
            for score, passage in zip(scores_K, ids_K.tolist(), strict=True)
            if passage >= 0 and store.passage_documents[passage] != document
        ]  # fmt: skip
        found.append({"window": window, "document": store.document_names[document], "context": context,
                      "continuation": target, "candidates": candidates[:shown]})  # fmt: skip
    return found
