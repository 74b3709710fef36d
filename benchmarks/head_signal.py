"""Measures how well the gradient through each attention head agrees with the log-likelihoods of single passages.

    python benchmarks/head_signal.py [corpus=… scorer=… experiment=…]

Each window has 8 BM25 neighbours as candidates, with uniform weights in one attention head. Of a model with more than
32 heads, groups are measured: found, random and all heads.
The log-likelihood is differentiated by the weights. `correlation` is the correlation of these derivatives with the
candidates' own log-likelihoods, mean over windows. `same best` is the share of windows in which both have the same best
candidate (1/8 by chance). In a clear window, the best candidate's log-likelihood exceeds the mean of the others by more
than 5 nats. Overrides are those of dream-train.

Shapes: S windows, K candidates of a window.
"""

from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import torch
from omegaconf import DictConfig
from torch import Tensor

from dream.commands.app import command
from dream.scorers.attention.injection import Heads
from dream.utils.logging import get_logger

log = get_logger(__name__)

WINDOWS, CANDIDATES, CLEAR, SEED, MOST = 96, 8, 5.0, 7, 32
KEYS = ("scorer.scoring.max_passage_tokens", "scorer.scoring.dtype", "data.target_tokens", "data.context_tokens")


def correlation(a_SK: Tensor, b_SK: Tensor) -> Tensor:
    """Pearson's correlation of each row of a with the same row of b."""
    a_SK, b_SK = (rows - rows.mean(1, keepdim=True) for rows in (a_SK, b_SK))
    return (a_SK * b_SK).sum(1) / (a_SK.norm(dim=1) * b_SK.norm(dim=1)).clamp_min(1e-12)


def groups(parts: Any) -> dict[str, Heads]:
    """Each head and all heads; in a model of more than `MOST` heads, found and random ones and all heads."""
    from dream.scorers.attention.heads import all_heads, choose_heads

    heads = all_heads(parts.scorer)
    choose = lambda what, count, seed: choose_heads(  # noqa: E731
        what, count, seed, parts.scorer, parts.store, parts.objective.finder
    )
    if len(heads) <= MOST:
        chosen = {f"layer {layer} head {head}": choose([[layer, head]], 1, 0) for layer, head in heads}
    else:
        chosen = {f"found {count}": choose("found", count, 0) for count in (1, 4, 16, 32)}
        chosen |= {f"random 16, {seed}": choose("random", 16, seed) for seed in range(3)}
    return chosen | {"all": choose("all", 1, 0)}


def measure(cfg: DictConfig) -> None:
    from dream.build import ask_questions, build_text
    from dream.indexes.bm25 import BM25Index
    from dream.scorers.attention.heads import asked_windows, shuffled_neighbours
    from dream.scorers.candidate_scores import CandidateScores
    from dream.utils.timing import Timer

    parts = build_text(cfg)
    parts.scorer.load(parts.store)
    ask_questions(parts, parts.scorer)
    index = BM25Index.open_or_build(parts.store)
    windows = asked_windows(parts.store, SEED, WINDOWS)
    found = shuffled_neighbours(parts.store, index, windows, CANDIDATES, SEED)
    ids = torch.from_numpy(windows), torch.from_numpy(found)
    scores = CandidateScores(parts.scorer, parts.store, *ids, Timer())
    loglik_SK = scores.loglik_SK
    best_S = loglik_SK.argmax(1)
    others_S = (loglik_SK.sum(1) - loglik_SK.amax(1)) / (CANDIDATES - 1)
    clear_S = loglik_SK.amax(1) - others_S > CLEAR
    log.info(f"{WINDOWS} windows, {int(clear_S.sum())} of them clear")
    log.info("heads            correlation  same best   in clear windows: correlation  same best")
    for name, chosen in groups(parts).items():
        weights_SK = torch.full((WINDOWS, CANDIDATES), 1 / CANDIDATES, requires_grad=True)
        [gradient_SK] = torch.autograd.grad(scores.weighted(weights_SK, chosen, "keep").sum(), weights_SK)
        correlation_S, same_S = correlation(gradient_SK, loglik_SK), (gradient_SK.argmax(1) == best_S).float()
        log.info(f"{name:16} {correlation_S.mean():11.3f} {same_S.mean():10.3f} {correlation_S[clear_S].mean():31.3f} "
            f"{same_S[clear_S].mean():10.3f}")  # fmt: skip


if __name__ == "__main__":
    command("rank_heads", __doc__, KEYS)(measure)()
