"""The candidates of a window: a mixture of sources whose shares move linearly over the run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from dream.batch import WindowBatch
from dream.candidates.exclusion import MODES, excluded, excluded_ranges, fewest_allowed
from dream.candidates.random import draw_passages
from dream.store.permutation import random_bits
from dream.store.store import Store
from dream.utils.errors import require

if TYPE_CHECKING:
    from dream.indexes.snapshot import IndexHandle

FILL_STREAMS = range(1, 9)  # random streams for filling up; stream 0 belongs to the random source


class CandidateSource(Protocol):
    """Where candidates come from. One file and one YAML add another."""

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        """Called once, before the first proposal."""
        ...

    def propose(self, windows: WindowBatch, query_BD: Tensor, k: int, step: int) -> np.ndarray:
        """(B, M ≥ k) int64 passage ids, best first, -1 where there is none. Exclusion and repetition are not its
        concern, but it should give more than k where many of its ids will be excluded."""
        ...


class CandidateMixture:
    """Takes from each source its share of the K candidates, best first, without repetition or excluded passages.

    `schedule` gives each source's share at step 0 (`start`) and from step `schedule_steps` on (`end`); shares are
    relative. What a source cannot give is given by the others in their order, then by random passages. Of a step's
    windows the first `scored_windows`, or all where it is null, are scored by the LM; the others get candidates, which
    are negatives to them, where `hard_negatives` is true.
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
        seed: int,
    ) -> None:
        require(k >= 2, "candidates.k", k, "choose 2 or more: a posterior over one candidate says nothing")
        require(scored_windows is None or scored_windows >= 0, "candidates.scored_windows", scored_windows,
                "null for all windows of a step, or how many")  # fmt: skip
        require(exclude in MODES, "candidates.exclude", exclude, f"choose one of {', '.join(MODES)}")
        remedy = "choose 1 or more (it follows trainer.max_steps; give a number where that is -1)"
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
        self.schedule_steps, self.k, self.exclude, self.seed = schedule_steps, k, exclude, seed

    def prepare(self, store: Store, index: "IndexHandle") -> None:
        """Opens what the sources need, except of those that never have a share. ConfigError: K is too many."""
        self.store = store
        allowed = fewest_allowed(store, self.exclude, self.k)
        remedy = f"some windows of this corpus have only {allowed} passages with candidates.exclude={self.exclude}"
        require(self.k <= allowed, "candidates.k", self.k, remedy)
        for name, source in self.sources.items():
            if any(self.schedule.get(name, ())):
                source.prepare(store, index)

    def counts(self, windows: int) -> tuple[int, int]:
        """How many of a step's windows the LM scores, and how many get candidates."""
        scored = windows if self.scored_windows is None else min(self.scored_windows, windows)
        return scored, windows if self.hard_negatives else scored

    def shares(self, step: int) -> dict[str, float]:
        """Share of each source at this step; they sum to 1."""
        done = min(max(step / self.schedule_steps, 0.0), 1.0)
        raw = {name: start + (end - start) * done for name, (start, end) in self.schedule.items()}
        return {name: share / sum(raw.values()) for name, share in raw.items()}

    def propose(self, windows: WindowBatch, query_BD: Tensor, step: int) -> Tensor:
        """candidate_ids_BK, int64, where the query is: distinct, none excluded, never -1, grouped by source."""
        asked = {name: quota for name, quota in quotas(self.shares(step), self.k).items() if quota}
        ranked_by_source = [self._allowed(self.sources[name], windows, query_BD, step) for name in asked]
        rows = [
            take(list(per_source), list(asked.values()), self.k) for per_source in zip(*ranked_by_source, strict=True)
        ]
        self._fill(rows, windows)
        return torch.tensor(rows, dtype=torch.int64, device=query_BD.device)

    def _allowed(self, source: CandidateSource, windows: WindowBatch, query_BD: Tensor, step: int) -> list[list[int]]:
        """For each window the source's ids that may be used. 2K suffice: repetitions apart, K others can be taken."""
        ids_BM = source.propose(windows, query_BD, self.k, step)
        usable_BM = ~excluded(ids_BM, windows, self.store, self.exclude)
        return [ids[usable][: 2 * self.k].tolist() for ids, usable in zip(ids_BM, usable_BM, strict=True)]

    def _fill(self, rows: list[list[int]], windows: WindowBatch) -> None:
        """Random passages into the rows shorter than K, in place."""
        passages = len(self.store.passage_documents)
        for stream in FILL_STREAMS:
            if all(len(row) == self.k for row in rows):
                return
            drawn_BM = draw_passages(self.seed, stream, windows, 2 * self.k, passages)
            barred_BM = excluded(drawn_BM, windows, self.store, self.exclude)
            for row, drawn, barred in zip(rows, drawn_BM, barred_BM, strict=True):
                extend(row, drawn[~barred].tolist(), self.k)
        first_B, end_B = excluded_ranges(windows.window_ids_B.cpu().numpy(), self.store, self.exclude)
        for b, row in enumerate(rows):  # only where nearly every passage is excluded or taken
            if len(row) < self.k:
                allowed = np.concatenate([np.arange(first_B[b]), np.arange(end_B[b], passages)])
                position = windows.consumed - len(windows) + b
                extend(row, allowed[np.argsort(random_bits(self.seed, position, allowed))].tolist(), self.k)


def quotas(shares: Mapping[str, float], k: int) -> dict[str, int]:
    """Integers that sum to k, by largest remainder; equal remainders are served in the order of the sources."""
    exact = {name: share * k for name, share in shares.items()}
    whole = {name: int(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: -round(exact[name] - whole[name], 9))
    for name in by_remainder[: k - sum(whole.values())]:
        whole[name] += 1
    return whole


def take(ranked: list[list[int]], wanted: list[int], k: int) -> list[int]:
    """At most k distinct ids: first `wanted[s]` of each ranked list, then what is missing, from the lists in order."""
    taken: list[int] = []
    for ids, quota in zip(ranked, wanted, strict=True):
        extend(taken, ids, min(k, len(taken) + quota))
    for ids in ranked:
        extend(taken, ids, k)
    return taken


def extend(taken: list[int], ids: list[int], length: int) -> None:
    """Append the ids that are not in `taken` yet, until it has this length."""
    for passage in ids:
        if len(taken) >= length:
            return
        if passage not in taken:
            taken.append(passage)
