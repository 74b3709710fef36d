"""The DREAM objective: the language model reads all candidates in one prompt; the retriever weights its attention.

Shapes: S scored windows, K candidates of a window.
"""

from typing import Literal

import torch
from torch import Tensor

from dream.objectives.base import Candidates
from dream.objectives.mixed import MixedObjective
from dream.scorers.attention.heads import HeadFinder, choose_heads
from dream.utils.errors import require


class Attention(MixedObjective):
    """loss_s = -mean_t log p_LM(y_t | y_<t, x, d_1..d_K), nats per target token.

    Chosen heads weight their attention to passage k by p_k = softmax_k(sim_k / temperature): see `reweigh`. The
    gradient reaches the encoder through p. The loss does not use log-likelihoods of single candidates, so the output
    has none.
    Source: DREAM (Tang & Yang, arXiv 2606.24667).

    Args:
        temperature: temperature of the retriever's softmax over cosines.
        continuation: share of the contrast with the window's own continuation, at least 0 and below 1.
        unhelped_weight: weight, 0 to 1, of windows whose target no candidate makes more likely than no passage does.
        mass: sum of a row's attention to all passages: `keep`, the head's own sum; `full`, 1.
        heads: `found` (the best of `finder`), `random` (a control), `all`, or a list of [layer, head].
        count: number of heads if they are found or random.
        seed: seed of random heads.
        finder: ranks the heads of the language model.

    Raises:
        ConfigError: a value is out of its range.
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
        """Choose the heads. Raises ConfigError if they do not exist, or if the model cannot read K passages at once."""
        scorer.require_gradient()
        scorer.require_room(store, k, "candidates.k", k)
        self.chosen = choose_heads(self.heads, self.count, self.seed, scorer, store, self.finder)

    def window_losses(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        weights_SK = torch.softmax(candidates.sim_SK / self.temperature, dim=1)
        return -candidates.scores.weighted(weights_SK, self.chosen, self.mass), None
