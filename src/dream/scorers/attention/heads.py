"""Ranks the attention heads of a language model by how much they attend to the helpful passage.

The ranking is computed once for each scorer and store, then cached.

Shapes: S windows, K candidates, H heads of a layer, T tokens.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dream.indexes.bm25 import BM25Index, bm25_settings
from dream.scorers.attention.injection import Heads, RecordedAttention, injectable
from dream.scorers.base import CausalScorer
from dream.scorers.candidate_scores import read_passages
from dream.scorers.pretraining.curriculum import neighbour_passages, random_passages, uniform
from dream.store.permutation import permute
from dream.store.store import SCORER, Store
from dream.utils.atomic_io import fingerprint, write_json
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import DreamError, require
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

STEP = 16  # windows that are scored at a time
LAYOUT = 3  # increase it when the score below changes; heads are then ranked again


@dataclass
class RankedHeads:
    """A ranking of heads.

    Args:
        rows: (layer, head, score), the best first. The score is a difference of attention shares.
        windows: number of windows; a score is a mean over them.
        folder: folder of the cached ranking.
    """

    rows: list[tuple[int, int, float]]
    windows: int
    folder: Path

    def matrix(self) -> tuple[np.ndarray, list[int]]:
        """(scores by layer and head, numbers of the layers with attention). Heads that a layer lacks are NaN."""
        layers = sorted({layer for layer, _, _ in self.rows})
        scores = np.full((len(layers), max(head for _, head, _ in self.rows) + 1), np.nan)
        for layer, head, score in self.rows:
            scores[layers.index(layer), head] = score
        return scores, layers


class HeadFinder:
    """Ranks heads by their query-focused attention to helpful passages, without labels.

    Windows are the questions of `data.questions`, if there are any. The helpful passage of a window is the one of its
    `candidates` BM25 neighbours that makes the target most likely. A window is used if this log-likelihood exceeds the
    mean of the other candidates by at least `gain` nats per token. For each head and passage k,

        added_k = attention of the window's rows to k - the same with `uninformative` text in place of the window.

    The head's score for a window is added_helpful minus the mean of added_k over the other candidates. Heads are ranked
    by the mean score over all used windows.
    Source: QRHead (Zhang et al. 2025), without its threshold on single tokens. Subtracting the mean over the other
    candidates is our addition. Without it, heads that attend to all passages of a question get high scores.

    Args:
        windows: number of windows to use.
        scanned: maximum number of windows to examine, the first ones of a seeded order.
        candidates: BM25 neighbours of a window, all in one prompt.
        gain: minimum difference between the helpful passage and the mean of the others, in nats per target token.
        rows: rows whose attention counts: `context`, tokens of the context; `window`, tokens of context and target.
        uninformative: text that replaces the window.
        seed: seed of the order of windows, and of the order of candidates in the prompt.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> ranked = HeadFinder(128, 4096, 8, 0.1, "window", "N/A", 0).open_or_find(scorer, store)
        >>> layer, head, score = ranked.rows[0]
    """

    def __init__(
        self,
        windows: int,
        scanned: int,
        candidates: int,
        gain: float,
        rows: Literal["context", "window"],
        uninformative: str,
        seed: int,
    ) -> None:
        require(windows > 0, "objective.finder.windows", windows, "at least 1")
        require(scanned >= windows, "objective.finder.scanned", scanned, f"at least objective.finder.windows={windows}")
        require(candidates >= 2, "objective.finder.candidates", candidates, "at least 2")
        require(rows in ("context", "window"), "objective.finder.rows", rows, "choose context or window")
        require(bool(uninformative), "objective.finder.uninformative", uninformative, "some text without a question")
        self.windows, self.scanned, self.candidates, self.gain, self.rows = windows, scanned, candidates, gain, rows
        self.uninformative, self.seed = uninformative, seed

    def open_or_find(self, scorer: CausalScorer, store: Store) -> RankedHeads:
        """The ranking for this scorer, this store and these settings. It is computed if it is not in the cache.

        Raises:
            ConfigError: the scorer runs on a server.
            DreamError: no window has a sufficiently helpful passage.
        """
        require(hasattr(scorer, "model"), "scorer", "server", "a server does not show its attention; choose scorer=hf")
        settings = [LAYOUT, self.windows, self.scanned, self.candidates, self.gain, self.rows, self.uninformative,
                    self.seed, bm25_settings(store.language)]  # fmt: skip
        name = f"{store.path.name.rpartition('-')[0]}-{fingerprint([scorer.fingerprint, store.scoring_hash, settings])}"
        folder = store.cache_folder("heads") / name
        if not verify_or_discard(folder):
            scorer.require_room(store, self.candidates, "objective.finder.candidates", self.candidates)
            rows, used = self._find(scorer, store)
            with new_directory(folder) as unfinished:
                write_json(unfinished / "heads.json", {"windows": used, "heads": rows})
        found = json.loads((folder / "heads.json").read_text())
        return RankedHeads([tuple(row) for row in found["heads"]], found["windows"], folder)

    def _find(self, scorer: CausalScorer, store: Store) -> tuple[list[tuple[int, int, float]], int]:
        index = BM25Index.open_or_build(store)
        log.info(f"Ranking the language model's attention heads on {self.windows} windows that have a helpful passage")
        sums: dict[int, Tensor] = {}
        used = 0
        bar = progress(total=self.windows, unit="window", desc="finding heads")
        for window_id, passages, helpful in self._helped(scorer, store, index):
            for layer, score_H in self._focus(scorer, store, window_id, passages, helpful).items():
                sums[layer] = sums.get(layer, torch.zeros_like(score_H)) + score_H
            used += 1
            bar.update()
            if used == self.windows:
                break
        bar.close()
        if not used:
            raise DreamError(f"objective.finder.gain={self.gain}: none of {self.scanned:,} windows has a passage that "
                             "helps this much; lower it, or choose a scorer that uses its passages")  # fmt: skip
        rows = [
            (layer, head, float(score))
            for layer, sum_H in sums.items()
            for head, score in enumerate((sum_H / used).tolist())
        ]
        return sorted(rows, key=lambda row: (-row[2], row[0], row[1])), used

    def _helped(self, scorer: CausalScorer, store: Store, index: BM25Index) -> Iterable[tuple[int, list[int], int]]:
        """Yield (window, its candidates in a seeded order, position of the helpful one among them)."""
        order = asked_windows(store, self.seed, self.scanned)
        for start in range(0, len(order), STEP):
            chosen_S = order[start : start + STEP]
            found_SK = shuffled_neighbours(store, index, chosen_S, self.candidates, self.seed)
            loglik_SK = scorer.loglik(store, torch.from_numpy(chosen_S), torch.from_numpy(found_SK)).cpu()
            counts_S = store.scored_counts(chosen_S).tolist()
            rows = zip(chosen_S.tolist(), found_SK.tolist(), loglik_SK, counts_S, strict=True)
            for window_id, passages, loglik_K, tokens in rows:
                helpful = int(loglik_K.argmax())
                others = (loglik_K.sum() - loglik_K[helpful]) / (len(loglik_K) - 1)
                if float(loglik_K[helpful] - others) / tokens >= self.gain:
                    yield window_id, passages, helpful

    def _focus(
        self, scorer: CausalScorer, store: Store, window_id: int, passage_ids: list[int], helpful: int
    ) -> dict[int, Tensor]:
        """score_H by layer, for one window. See the class."""
        context, _ = store.window_tokens(window_id, SCORER)
        asked = np.concatenate(store.scored_tokens(window_id)) if self.rows == "window" else context
        nothing: Any = scorer.tokenizer(self.uninformative, add_special_tokens=False)["input_ids"]
        passages = [scorer.passage(store, passage_id) for passage_id in passage_ids]
        with_question = passage_attention(scorer, passages, asked)
        without = passage_attention(scorer, passages, np.array(nothing))
        scores = {}
        for layer, mass_HK in with_question.items():
            added_HK = mass_HK - without[layer]
            others_H = (added_HK.sum(1) - added_HK[:, helpful]) / (len(passages) - 1)
            scores[layer] = added_HK[:, helpful] - others_H
        return scores


def asked_windows(store: Store, seed: int, most: int) -> np.ndarray:
    """Ids of at most `most` windows in a seeded order: questions of `data.questions`, otherwise pieces of documents."""
    first = len(store.windows) if store.questions else 0
    count = len(store.questions or store.windows)
    return first + permute(seed, np.arange(min(most, count)), count)


def shuffled_neighbours(store: Store, index: BM25Index, windows_S: np.ndarray, count: int, seed: int) -> np.ndarray:
    """found_SK: the passages that BM25 finds for each window, in a seeded order.

    Those of a question may come from its own document; those of a piece of a document may not.
    """
    other_S = random_passages(store, windows_S, uniform(seed, 0, windows_S))
    if store.questions:
        found_SK = index.search([store.window_text(window)[0] for window in windows_S.tolist()], count)[1]
        found_SK = np.where(found_SK < 0, other_S[:, None], found_SK)
    else:
        found_SK = neighbour_passages(store, index, windows_S, count, other_S)
    draws_SK = np.stack([uniform(seed, 1 + k, windows_S) for k in range(count)], axis=1)
    return np.take_along_axis(found_SK, draws_SK.argsort(1), axis=1)


@torch.no_grad()
def passage_attention(scorer: CausalScorer, passages: list[np.ndarray], rows: np.ndarray) -> dict[int, Tensor]:
    """mass_HK by layer: each head's attention to each passage, mean over `rows` (token ids after the passages)."""
    asked = torch.from_numpy(rows.astype(np.int64)).to(scorer.device)
    with scorer.no_autocast(), injectable(scorer.model):
        prompt_T = torch.from_numpy(scorer.prompt.join_passages(passages)).to(scorer.device)
        memory, owner_T = read_passages(scorer, passages, prompt_T)
        recorded = RecordedAttention(owner_T, len(passages))
        scorer.model.base_model(input_ids=asked[None], past_key_values=memory, use_cache=True, attend=recorded)
    return recorded.mass_of_layer


def all_heads(scorer: CausalScorer) -> list[tuple[int, int]]:
    """Every (layer, head) whose attention can be weighted."""
    mass_of_layer = passage_attention(scorer, [np.zeros(1, dtype=np.int64)], np.zeros(1, dtype=np.int64))
    return [(layer, head) for layer, mass_HK in sorted(mass_of_layer.items()) for head in range(len(mass_HK))]


def choose_heads(
    heads: str | list[list[int]], count: int, seed: int, scorer: CausalScorer, store: Store, finder: HeadFinder
) -> Heads:
    """The heads of the attention objective, by layer.

    Args:
        heads: `found`, `random`, `all`, or a list of [layer, head].
        count: number of heads if they are found or random.
        seed: seed of random heads.
        scorer: the language model.
        store: windows and passages for `finder`.
        finder: ranks the heads, if `heads` is `found`.

    Raises:
        ConfigError: the model does not have these heads, or has fewer than `count`.
    """
    known = all_heads(scorer)
    counted = heads in ("found", "random")
    require(not counted or count <= len(known), "objective.count", count, f"the model has {len(known)} heads")
    if heads == "all":
        chosen = known
    elif heads == "random":
        order = np.random.default_rng(seed).permutation(len(known))[:count]
        chosen = [known[number] for number in order]
    elif heads == "found":
        chosen = [(layer, head) for layer, head, _ in finder.open_or_find(scorer, store).rows[:count]]
    else:
        require(bool(heads), "objective.heads", heads, "at least one pair of [layer, head]")
        chosen = [tuple(pair) for pair in heads]  # type: ignore[misc]
        layers = {layer: sum(of == layer for of, _ in known) for layer, _ in known}
        require(set(chosen) <= set(known), "objective.heads", heads, "pairs of [layer, head]; the model has "
                + ", ".join(f"layer {layer}: {number} heads" for layer, number in layers.items()))  # fmt: skip
    by_layer: dict[int, list[int]] = {}
    for layer, head in chosen:
        by_layer.setdefault(layer, []).append(head)
    return by_layer
