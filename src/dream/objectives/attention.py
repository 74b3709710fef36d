"""The DREAM objective: the language model reads all candidates at once, as the retriever weighs them."""

from typing import Literal

import torch
from torch import Tensor

from dream.errors import require
from dream.objectives.base import Candidates
from dream.objectives.mixed import MixedObjective
from dream.scorers.heads import HeadFinder, choose_heads


class Attention(MixedObjective):
    """loss = -mean_t log p_LM(y_t | y_<t, x, d_1..d_K), where chosen heads weigh passage k by p_k = softmax(sim / T).

    Source: DREAM (Tang & Yang, arXiv 2606.24667). `heads`: found (those that `finder` ranks first), random (its
    control), all, or a list of [layer, head]; `count` of them, where they are found or random.
    """

    def __init__(
        self,
        temperature: float,
        continuation: float,
        unhelped_weight: float,
        mass: Literal["keep", "full"],
        heads: str | list[list[int]],
        count: int,
        seed: int,
        finder: HeadFinder,
    ) -> None:
        super().__init__(temperature, continuation, unhelped_weight)
        require(mass in ("keep", "full"), "objective.mass", mass, "choose keep or full")
        known = not isinstance(heads, str) or heads in ("found", "random", "all")
        require(known, "objective.heads", heads, "choose found, random, all, or a list of [layer, head]")
        require(count > 0, "objective.count", count, "at least 1 head")
        self.mass: Literal["keep", "full"] = mass
        self.heads, self.count, self.seed, self.finder = heads, count, seed, finder

    def prepare(self, scorer, store, k: int) -> None:
        scorer.require_room(store, k, "candidates.k", k)
        self.chosen = choose_heads(self.heads, self.count, self.seed, scorer, store, self.finder)

    def window_losses(self, candidates: Candidates) -> Tensor:
        weights_SK = torch.softmax(candidates.sim_SK / self.temperature, dim=1)
        return -candidates.reading.weighted(weights_SK, self.chosen, self.mass)
