"""Measures whether a scorer uses its passages.

    python benchmarks/scorer_gain.py [scorer=hf scorer.name=... corpus=...]

It prints differences from the log-likelihood with random passages of other documents, in nats per target token: with
the first BM25 neighbour, with the best of ten neighbours, without a passage, and with a random passage that contains a
span of the target. Overrides are those of dream-pretrain. If the scratch scorer is not cached, it is trained first.
"""

import time

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from dream.commands.app import command
from dream.utils.logging import get_logger

log = get_logger(__name__)

WINDOWS = 512
SPAN = 24  # tokens of the target that are copied into a passage
WINDOWS_PER_STEP = 64
KEYS = ("scorer.scoring.max_passage_tokens", "scorer.scoring.dtype", "scorer.seed")


class PlantedPassages:
    """A store for the scorer. Passage w is a random passage with a span of window w's target in its middle.

    Args:
        store: the store of windows and passages.
        random_passages_W: window → its random passage.
    """

    def __init__(self, store, random_passages_W: dict[int, int]) -> None:
        self.scored_tokens = store.scored_tokens
        self.store, self.random_passages_W = store, random_passages_W

    def read_tokens(self, window: int, side: int) -> np.ndarray:
        from dream.scorers.pretraining.curriculum import plant

        passage = self.store.passage_tokens(self.random_passages_W[window], side)
        target = self.store.window_tokens(window, side)[1]
        return plant(np.array(passage), target, (SPAN, SPAN), np.array([0.0, 0.5, 0.5]))


def verbatim_loglik(scorer, store, window_ids: np.ndarray, seed: int) -> float:
    """Mean log-likelihood with planted passages, nats per target token."""
    from dream.scorers.pretraining.curriculum import random_passages, uniform
    from dream.store.store import SCORER

    passages = random_passages(store, window_ids, uniform(seed, 0, window_ids))
    planted = PlantedPassages(store, dict(zip(window_ids.tolist(), passages.tolist(), strict=True)))
    sums = []
    for start in range(0, len(window_ids), WINDOWS_PER_STEP):
        chosen_B = torch.from_numpy(window_ids[start : start + WINDOWS_PER_STEP])
        loglik_B = scorer.loglik(planted, chosen_B, chosen_B[:, None])[:, 0].cpu().numpy()
        tokens_B = [len(store.window_tokens(window, SCORER)[1]) for window in chosen_B.tolist()]
        sums.append(loglik_B / tokens_B)
    return float(np.concatenate(sums).mean())


def benchmark(cfg: DictConfig) -> None:
    from dream.build import build_text
    from dream.indexes.bm25 import BM25Index
    from dream.scorers.pretraining.gain import held_out_windows, measure_gain

    OmegaConf.update(cfg, "scorer.cache_megabytes", 0)  # planted passages are not in the store, so do not cache them
    parts = build_text(cfg)
    store, scorer = parts.store, parts.scorer
    scorer.load(store)
    index = BM25Index.open_or_build(store)
    began = time.perf_counter()
    gain = measure_gain(scorer, store, index, WINDOWS, cfg.seed)
    seconds = time.perf_counter() - began
    verbatim = verbatim_loglik(scorer, store, held_out_windows(store, WINDOWS, cfg.seed), cfg.seed)
    rows = vars(gain) | {f"verbatim_{SPAN}_tokens": verbatim - gain.random_loglik}
    log.info(f"{WINDOWS} windows of corpus {cfg.corpus.name}, scored in {seconds:.0f} s; nats per target token")
    for name, nats in rows.items():
        log.info(f"  {name:20} {nats:+.3f}")


if __name__ == "__main__":
    command("pretrain", __doc__, KEYS)(benchmark)()
