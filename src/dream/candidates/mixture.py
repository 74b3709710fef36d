"""The candidates of a window: a mixture of sources whose shares change linearly during the run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from dream.batch import WindowBatch
from dream.candidates.exclusion import MODES, excluded, excluded_ranges, fewest_allowed
from dream.candidates.random import draw_passages
from dream.indexes.near_copies import LEAST, NearCopies
from dream.store.permutation import random_bits
from dream.store.store import Store
from dream.utils.errors import require

if TYPE_CHECKING:
    from dream.indexes.snapshot import IndexHandle

OVER_ASKED = 4  # ids that a source is asked for, for each candidate, if near copies are removed
FILL_STREAMS = range(1, 9)  # random streams for filling up; stream 0 belongs to the random source


class CandidateSource(Protocol):
    """Proposes candidates. To add a source, add a file here and a YAML file in conf/candidates."""

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        """Open what the source needs. Called once, before the first proposal."""
        ...

    def propose(self, windows: WindowBatch, query_BD: Tensor, k: int, step: int) -> np.ndarray:
        """Passage ids for each window.

        The mixture removes excluded passages and repetitions. A source should return more than k ids if many of its ids
        are likely to be excluded.

        Args:
            query_BD: embeddings of the windows' contexts.
            k: how many candidates are needed.
            step: optimizer step.

        Returns:
            (B, M) int64 with M ≥ k, best first, padded with -1.
        """
        ...


class CandidateMixture:
    """Takes the K candidates of each window from several sources, without repetitions and excluded passages.

    Each source gives its share, best candidates first. If a source has too few, candidates of the other sources are
    added in the order of `schedule`, and then random passages.

    Args:
        sources: by name.
        schedule: by name, the source's share at step 0 (`start`) and at step `schedule_steps` and later (`end`).
            Shares are relative. A source without an entry is not used.
        schedule_steps: optimizer steps over which shares change linearly.
        k: candidates of a window, K.
        scored_windows: the LM scores this number of windows of a step, the first ones; None: all.
        hard_negatives: the other windows also get candidates, which are negatives.
        exclude: passages that may not be candidates, one of `exclusion.MODES`.
        near_copy: lowest Jaccard similarity of near copies; of these, only the first is a candidate of a window, as
            long as there are other passages. None: near copies are not looked for.
        seed: seed of the random passages.

    Attributes:
        copies: the near copies of the store, after `prepare`; None: they are not looked for.

    Raises:
        ConfigError: a value is out of range, `schedule` names an unknown source, or no source has a share.
    """

    def __init__(
        self,
        sources: Mapping[str, CandidateSource],
        schedule: Mapping[str, Mapping[str, float]],
        schedule_steps: int,
        k: int,
        scored_windows: int | None,
        hard_negatives: bool,
        exclude: str,
        near_copy: float | None,
        seed: int,
    ) -> None:
        require(k >= 2, "candidates.k", k, "choose 2 or more: a posterior over one candidate is always 1")
        require(scored_windows is None or scored_windows >= 0, "candidates.scored_windows", scored_windows,
                "choose null for all windows of a step, or 0 or more")  # fmt: skip
        require(exclude in MODES, "candidates.exclude", exclude, f"choose one of {', '.join(MODES)}")
        fits = near_copy is None or LEAST <= near_copy <= 1
        require(fits, "candidates.near_copy", near_copy, f"choose null, or a similarity from {LEAST} to 1")
        remedy = "choose 1 or more (by default it is trainer.max_steps; set it if that is -1)"
        require(schedule_steps >= 1, "candidates.schedule_steps", schedule_steps, remedy)
        names = sorted(sources)
        known = set(schedule) <= set(names)
        require(known, "candidates.schedule", sorted(schedule), f"choose from the sources {', '.join(names)}")
        for name, ends in schedule.items():
            for end in ("start", "end"):
                share = ends.get(end, -1)
                require(share >= 0, f"candidates.schedule.{name}.{end}", share, "give a share of 0 or more")
        for end in ("start", "end"):
            total = sum(ends[end] for ends in schedule.values())
            require(total > 0, f"candidates.schedule.*.{end}", total, "at least one share must be above 0")
        self.sources = dict(sources)
        self.schedule = {name: (float(ends["start"]), float(ends["end"])) for name, ends in schedule.items()}
        self.scored_windows, self.hard_negatives = scored_windows, hard_negatives
        self.near_copy = near_copy
        self.copies: NearCopies | None = None
        self.schedule_steps, self.k, self.exclude, self.seed = schedule_steps, k, exclude, seed

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        """Prepare the sources that have a share above 0 at some step.

        Raises:
            ConfigError: a window has fewer than K allowed passages.
        """
        self.store = store
        allowed = fewest_allowed(store, self.exclude, self.k)
        remedy = f"some windows of this corpus have only {allowed} passages with candidates.exclude={self.exclude}"
        require(self.k <= allowed, "candidates.k", self.k, remedy)
        self.copies = None if self.near_copy is None else NearCopies(store, self.near_copy)
        for name, source in self.sources.items():
            if any(self.schedule.get(name, ())):
                source.prepare(store, index)

    def counts(self, windows: int) -> tuple[int, int]:
        """(number of a step's windows that the LM scores, number that get candidates)"""
        scored = windows if self.scored_windows is None else min(self.scored_windows, windows)
        return scored, windows if self.hard_negatives else scored

    def shares(self, step: int) -> dict[str, float]:
        """Share of each source at this step; they sum to 1."""
        done = min(max(step / self.schedule_steps, 0.0), 1.0)
        raw = {name: start + (end - start) * done for name, (start, end) in self.schedule.items()}
        return {name: share / sum(raw.values()) for name, share in raw.items()}

    def propose(self, windows: WindowBatch, query_BD: Tensor, step: int) -> Tensor:
        """candidate_ids_BK int64 on the queries' device: distinct, not excluded, never -1, grouped by source."""
        asked = {name: quota for name, quota in quotas(self.shares(step), self.k).items() if quota}
        ranked_by_source = [self._allowed(self.sources[name], windows, query_BD, step) for name in asked]
        rows = [
            take(list(per_source), list(asked.values()), self.k, self.copies)
            for per_source in zip(*ranked_by_source, strict=True)
        ]
        self._fill(rows, windows)
        return torch.tensor(rows, dtype=torch.int64, device=query_BD.device)

    def _allowed(self, source: CandidateSource, windows: WindowBatch, query_BD: Tensor, step: int) -> list[list[int]]:
        """The source's allowed ids of each window, best first. 2K ids are enough: at most K are repetitions."""
        over = 1 if self.copies is None else OVER_ASKED
        ids_BM = source.propose(windows, query_BD, over * self.k, step)
        usable_BM = ~excluded(ids_BM, windows, self.store, self.exclude)
        rows = [ids[usable] for ids, usable in zip(ids_BM, usable_BM, strict=True)]
        if self.copies is not None:
            rows = [self.copies.first_of_each(ids) for ids in rows]
        return [ids[: 2 * self.k].tolist() for ids in rows]

    def _fill(self, rows: list[list[int]], windows: WindowBatch) -> None:
        """Fill rows shorter than K with random passages, in place."""
        passages = len(self.store.passage_documents)
        for stream in FILL_STREAMS:
            if all(len(row) == self.k for row in rows):
                return
            drawn_BM = draw_passages(self.seed, stream, windows, 2 * self.k, passages)
            barred_BM = excluded(drawn_BM, windows, self.store, self.exclude)
            for row, drawn, barred in zip(rows, drawn_BM, barred_BM, strict=True):
                extend(row, drawn[~barred].tolist(), self.k, self.copies)
        first_B, end_B = excluded_ranges(windows.window_ids_B.cpu().numpy(), self.store, self.exclude)
        for b, row in enumerate(rows):  # a row is still short only if nearly every passage is excluded or taken
            if len(row) < self.k:
                allowed = np.concatenate([np.arange(first_B[b]), np.arange(end_B[b], passages)])
                position = int(windows.positions_B[b])
                drawn = allowed[np.argsort(random_bits(self.seed, position, allowed))].tolist()
                extend(row, drawn, self.k, self.copies)
                extend(row, drawn, self.k)  # near copies, because nothing else is left


def quotas(shares: Mapping[str, float], k: int) -> dict[str, int]:
    """Numbers of candidates that sum to k, by the largest-remainder method.

    If remainders are equal, the first source has priority.

    Example:
        >>> quotas({"bm25": 0.5, "index": 0.25, "random": 0.25}, 5)
        {'bm25': 3, 'index': 1, 'random': 1}
    """
    exact = {name: share * k for name, share in shares.items()}
    whole = {name: int(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: -round(exact[name] - whole[name], 9))
    for name in by_remainder[: k - sum(whole.values())]:
        whole[name] += 1
    return whole


def take(ranked: list[list[int]], wanted: list[int], k: int, copies: NearCopies | None = None) -> list[int]:
    """At most k distinct ids: first `wanted[s]` from each ranked list s, then more from the lists in order."""
    taken: list[int] = []
    for ids, quota in zip(ranked, wanted, strict=True):
        extend(taken, ids, min(k, len(taken) + quota), copies)
    for ids in ranked:
        extend(taken, ids, k, copies)
    return taken


def extend(taken: list[int], ids: list[int], length: int, copies: NearCopies | None = None) -> None:
    """Append ids that are not in `taken` yet and no near copies of its ids, until it has this length."""
    groups = ids if copies is None else copies.group_N[ids].tolist()
    seen = set(taken if copies is None else copies.group_N[taken].tolist())
    for passage, group in zip(ids, groups, strict=True):
        if len(taken) >= length:
            return
        if group not in seen:
            seen.add(group)
            taken.append(passage)
