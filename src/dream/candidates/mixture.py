"""The candidates of a window: a mixture of sources whose shares change linearly during the run.

Shape suffixes besides those of `dream.batch`: C sources of candidates; M ids that a source proposes.
"""

from collections.abc import Mapping, Sequence
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
SOURCE_STREAM = 9  # for the source of a window that is not scored


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
            windows: the windows of the step that need candidates of this source.
            query_BD: embeddings of the windows' contexts.
            k: how many candidates are needed.
            step: optimizer step.

        Returns:
            (B, M) int64 with M ≥ k, best first, padded with -1.
        """
        ...


class CandidateMixture:
    """Takes the K candidates of each window from several sources, without repetitions and excluded passages.

    A window that the LM scores gets candidates of all sources, each its share, best candidates first. If a source has
    too few, candidates of the other sources are added in the order of `schedule`, and then random passages. The
    candidates of another window are only negatives. They all come from one source, drawn with the shares as
    probabilities, and random passages if there are too few: searching is expensive, so each source is asked only for
    the windows that need it.

    Args:
        sources: by name.
        schedule: by name, the source's share at step 0 (`start`) and at step `schedule_steps` and later (`end`).
            Shares are relative. A source without an entry is not used.
        schedule_steps: optimizer steps over which shares change linearly; None: the steps of the run.
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
        schedule_steps: int | None,
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
        remedy = "choose 1 or more, or null: the steps of the run"
        require(schedule_steps is None or schedule_steps >= 1, "candidates.schedule_steps", schedule_steps, remedy)
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

    def prepare(self, store: Store, index: "IndexHandle", steps: int, own_passage: bool = False) -> None:
        """Prepare the sources that have a share above 0 at some step.

        Args:
            steps: optimizer steps of the run.
            own_passage: the first candidate of a question is the passage that it was written about.

        Raises:
            ConfigError: a window has fewer than K allowed passages.
        """
        self.store, self.own_passage = store, own_passage
        self.schedule_steps = self.schedule_steps or steps
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
        assert self.schedule_steps is not None  # after `prepare`
        done = min(max(step / self.schedule_steps, 0.0), 1.0)
        raw = {name: start + (end - start) * done for name, (start, end) in self.schedule.items()}
        return {name: share / sum(raw.values()) for name, share in raw.items()}

    def propose(self, windows: WindowBatch, query_BD: Tensor, step: int, scored: int) -> Tensor:
        """candidate_ids_BK int64 on the queries' device: distinct, not excluded, never -1, grouped by source.

        Args:
            query_BD: embeddings of the windows' contexts.
            step: optimizer step.
            scored: the LM scores this number of the windows, the first ones.
        """
        if not len(windows):
            return torch.empty(0, self.k, dtype=torch.int64, device=query_BD.device)
        wanted = self._wanted(windows, step, scored)
        ranked = [
            self._ranked(name, wanted_B1[:, 0] > 0, windows, query_BD, step) for name, wanted_B1 in wanted.items()
        ]
        counts: list[np.ndarray | int] = list(wanted.values())
        if self.own_passage:
            ranked.insert(0, self.store.asked_passages(windows.window_ids_B.cpu().numpy())[:, None])
            counts.insert(0, 1)
        taken_BK = take(ranked, counts, self.k, self._groups_N)
        self._fill(taken_BK, windows)
        return torch.from_numpy(taken_BK).to(query_BD.device)

    def _wanted(self, windows: WindowBatch, step: int, scored: int) -> dict[str, np.ndarray]:
        """By source, (B, 1) numbers of candidates. Sources that no window needs are left out."""
        shares, wanted = self.shares(step), self.k - int(self.own_passage)
        positions_B, ids_B = windows.positions_B.cpu().numpy(), windows.window_ids_B.cpu().numpy()
        drawn_B = random_bits(self.seed, SOURCE_STREAM, positions_B, ids_B) / 2.0**64
        source_B = np.searchsorted(np.cumsum(list(shares.values()))[:-1], drawn_B, side="right")
        wanted_BC = wanted * (source_B[:, None] == np.arange(len(shares)))
        wanted_BC[:scored] = list(quotas(shares, wanted).values())
        return {name: wanted_BC[:, [c]] for c, name in enumerate(shares) if wanted_BC[:, c].any()}

    def _ranked(self, name: str, asks_B: np.ndarray, windows: WindowBatch, query_BD: Tensor, step: int) -> np.ndarray:
        """ids_BM of a source, best first; -1 for the windows that do not ask it and for ids that are not allowed."""
        over = 1 if self.copies is None else OVER_ASKED
        rows = torch.from_numpy(np.flatnonzero(asks_B))
        asking = windows.rows(rows.to(windows.window_ids_B.device))
        found = self.sources[name].propose(asking, query_BD[rows.to(query_BD.device)], over * self.k, step)
        ids_BM = np.full((len(windows), found.shape[1]), -1, dtype=np.int64)
        ids_BM[asks_B] = self._allowed(found, asking)
        return ids_BM

    @property
    def _groups_N(self) -> np.ndarray | None:
        return None if self.copies is None else self.copies.group_N

    def _allowed(self, ids_BM: np.ndarray, windows: WindowBatch) -> np.ndarray:
        """The ids, with -1 instead of those that may not be candidates."""
        return np.where(excluded(ids_BM, windows, self.store, self.exclude), -1, ids_BM)

    def _fill(self, taken_BK: np.ndarray, windows: WindowBatch) -> None:
        """Fill rows shorter than K with random passages, in place."""
        passages = len(self.store.passage_documents)
        for stream in FILL_STREAMS:
            if (taken_BK >= 0).all():
                return
            drawn_BM = draw_passages(self.seed, stream, windows, 2 * self.k, passages)
            extend(taken_BK, self._allowed(drawn_BM, windows), self.k, self._groups_N)
        first_B, end_B = excluded_ranges(windows.window_ids_B.cpu().numpy(), self.store, self.exclude)
        for b in np.flatnonzero((taken_BK < 0).any(1)):  # nearly every passage is excluded or taken
            allowed = np.concatenate([np.arange(first_B[b]), np.arange(end_B[b], passages)])
            position = int(windows.positions_B[b])
            drawn_1M = allowed[np.argsort(random_bits(self.seed, position, allowed))][None]
            extend(taken_BK[b : b + 1], drawn_1M, self.k, self._groups_N)
            extend(taken_BK[b : b + 1], drawn_1M, self.k)  # near copies, because nothing else is left


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


def take(
    ranked: Sequence[np.ndarray], wanted: Sequence[int | np.ndarray], k: int, groups_N: np.ndarray | None = None
) -> np.ndarray:
    """taken_BK: first `wanted[s]` ids from each ranked_BM[s], then more from them in order; -1 where there are no more.

    `wanted[s]` is for all rows, or (B, 1). See `extend`.
    """
    taken_BK = np.full((len(ranked[0]), k), -1, dtype=np.int64)
    for ids_BM, quota in zip(ranked, wanted, strict=True):
        extend(taken_BK, ids_BM, ((taken_BK >= 0).sum(1, keepdims=True) + quota).clip(max=k), groups_N)
    for ids_BM in ranked:
        extend(taken_BK, ids_BM, k, groups_N)
    return taken_BK


def extend(
    taken_BK: np.ndarray, ids_BM: np.ndarray, length: int | np.ndarray, groups_N: np.ndarray | None = None
) -> None:
    """Append ids to the rows of `taken_BK`, in place, until a row has this length. Left out are -1 and repetitions.

    Args:
        taken_BK: the ids so far; -1 in the places that are free, the last ones.
        ids_BM: more ids, the best ones first.
        length: of all rows, or (B, 1).
        groups_N: passages of the same group are near copies, and count as repetitions; None: each is its own group.
    """
    group_BM, taken_group_BK = (
        ids if groups_N is None else np.where(ids < 0, -1, groups_N[ids]) for ids in (ids_BM, taken_BK)
    )
    is_new_BM = (group_BM >= 0) & first_of_each(group_BM)
    is_new_BM &= ~(group_BM[:, :, None] == taken_group_BK[:, None]).any(2)
    place_BM = (taken_BK >= 0).sum(1, keepdims=True) + is_new_BM.cumsum(1) - 1
    row, column = np.nonzero(is_new_BM & (place_BM < length))
    taken_BK[row, place_BM[row, column]] = ids_BM[row, column]


def first_of_each(values_BM: np.ndarray) -> np.ndarray:
    """mask_BM: the first place of each value in its row."""
    order_BM = values_BM.argsort(axis=1, kind="stable")
    sorted_BM = np.take_along_axis(values_BM, order_BM, 1)
    changes_BM = np.diff(sorted_BM, axis=1, prepend=sorted_BM[:, :1] - 1) != 0
    mask_BM = np.empty_like(changes_BM)
    np.put_along_axis(mask_BM, order_BM, changes_BM, 1)
    return mask_BM
