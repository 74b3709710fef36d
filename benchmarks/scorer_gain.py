"""Does a scorer read its passages? Run: python benchmarks/scorer_gain.py [scorer=hf scorer.name=... corpus=...]

Prints, in nats per target token against random passages of other documents, what is gained by the first BM25 neighbour,
by the best of ten in the scorer's own eyes, by no passage at all, and by a random passage in which a span of the target
stands verbatim. Takes every override of dream-pretrain; a scratch scorer that is not cached is trained first.
"""

import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger

log = get_logger(__name__)

WINDOWS = 512
SPAN = 24  # tokens of the target that a verbatim passage holds
WINDOWS_PER_STEP = 64


class PlantedPassages:
    """Looks like a store to the scorer; passage w is a random one with a span of window w's target in its middle."""

    def __init__(self, store, random_passages_W: dict[int, int]) -> None:
        self.window_tokens = store.window_tokens
        self.store, self.random_passages_W = store, random_passages_W

    def passage_tokens(self, window: int, side: int) -> np.ndarray:
        from dream.scorers.pretraining.curriculum import plant

        passage = self.store.passage_tokens(self.random_passages_W[window], side)
        target = self.store.window_tokens(window, side)[1]
        return plant(np.array(passage), target, (SPAN, SPAN), np.array([0.0, 0.5, 0.5]))


def verbatim_loglik(scorer, store, window_ids: np.ndarray, seed: int) -> float:
    """Mean nats per target token behind planted passages."""
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
    from dream.build import assemble
    from dream.indexes.bm25 import BM25Index
    from dream.scorers.pretraining.gain import held_out_windows, measure_gain

    parts = assemble(cfg)
    store, scorer = parts.store, parts.scorer
    scorer.load(store)
    index = BM25Index.open_or_build(store, Path(cfg.paths.data) / "bm25")
    began = time.perf_counter()
    gain = measure_gain(scorer, store, index, WINDOWS, cfg.seed)
    seconds = time.perf_counter() - began
    verbatim = verbatim_loglik(scorer, store, held_out_windows(store, WINDOWS, cfg.seed), cfg.seed)
    rows = vars(gain) | {f"verbatim_{SPAN}_tokens": verbatim - gain.random_loglik}
    log.info(f"{WINDOWS} windows of corpus {cfg.corpus.name}, scored in {seconds:.0f} s; nats per target token")
    for name, nats in rows.items():
        log.info(f"  {name:20} {nats:+.3f}")


if __name__ == "__main__":
    command("pretrain")(benchmark)()
