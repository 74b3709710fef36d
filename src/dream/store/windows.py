"""Cuts the windows of a batch of documents, for each kind of context, and checks that a corpus has enough of them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from dream.corpora.base import Document
from dream.store.contexts import RANGES
from dream.store.cut import Batch, cut_beginning, cut_windows, shortest_target
from dream.store.tables import SCORER, WINDOW
from dream.utils.errors import ConfigError

ENOUGH = 0.01  # windows per document, for titles, sentences and headings


class WindowCutter:
    """Cuts the windows of a batch.

    Args:
        kind: one of `contexts.CONTEXTS`.
        context: maximum length of a context, in scorer tokens.
        min_context: minimum length of a context, in scorer tokens.
        target: length of a target, in scorer tokens; 0: no windows.
    """

    def __init__(self, kind: str, context: int, min_context: int, target: int) -> None:
        self.kind, self.context, self.min_context, self.target = kind, context, min_context, target

    def __call__(self, batch: Batch, documents: Sequence[Document]) -> tuple[np.ndarray, int]:
        """(rows of the window table, number of titles, sentences or headings of any length).

        Windows without encoder tokens are left out: the encoder's tokenizer may drop characters.
        """
        if not self.target:
            return np.empty(0, WINDOW), 0
        found = 0
        if self.kind in RANGES:
            contexts = [RANGES[self.kind](document) for document in documents]
            found = sum(map(len, contexts))
            windows = batch.window_table(SCORER, contexts, self.context, self.min_context, self.target, WINDOW)
        else:
            cut = cut_windows if self.kind == "span" else cut_beginning
            lengths = {"context": self.context, "min_context": self.min_context, "target": self.target}
            cut_text: Any = partial(cut, **lengths)  # type: ignore[arg-type]
            windows = batch.table(SCORER, cut_text, WINDOW)
        return windows[(np.diff(windows["tokens"], axis=2) > 0).all(axis=(1, 2))], found

    def require_enough(self, windows: int, found: int, documents: int, corpus: str) -> None:
        """Raise ConfigError if there is no window, or hardly any title, sentence or heading.

        Args:
            windows: number of windows of the corpus.
            found: number of titles, sentences or headings of the corpus, of any length.
            documents: number of documents of the corpus.
            corpus: its name.
        """
        if not self.target:
            return
        if self.kind not in RANGES:
            least = self.min_context + (self.target if self.kind == "span" else shortest_target(self.target))
            if not windows:
                raise ConfigError("data.target_tokens", self.target, f"no document of corpus {corpus} has {least} "
                                  "tokens, so there is no window; lower it or data.min_context_tokens")  # fmt: skip
        elif not found:
            raise ConfigError("data.context", self.kind, self._remedy(corpus))
        elif windows < max(1, ENOUGH * documents):
            raise ConfigError("data.context", self.kind, f"only {windows:,} of {found:,} {self.kind}s of corpus "
                              f"{corpus} have {self.min_context} to {self.context} tokens and text after them, in "
                              f"{documents:,} documents; change data.min_context_tokens and data.context_tokens, or "
                              "choose data.context=beginning")  # fmt: skip

    def _remedy(self, corpus: str) -> str:
        if self.kind == "title":
            return (f"no document of corpus {corpus} starts with its title; if it has titles, put them first "
                    "(corpus.text_fields=[title,text]), otherwise choose data.context=beginning")  # fmt: skip
        return f"corpus {corpus} has none; choose data.context=beginning or span"
