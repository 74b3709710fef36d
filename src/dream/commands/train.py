"""dream-train: train a retriever without labels, then report what it learnt."""

import gc
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.runtime import fast_imports

if TYPE_CHECKING:
    import lightning as L

    from dream.build import TextComponents
    from dream.module import RetrieverModule

ABOUT = """
dream-train trains a dense retriever without labels.

  dream-train experiment=quickstart                        the default; ends with a table of scores
  dream-train experiment=own_corpus corpus.path=my.jsonl   your own text
  dream-train debug=smoke                                  every part once, in seconds
  dream-train -m experiment=quickstart seed=0,1,2          a sweep
"""
KEYS = (
    "trainer.max_steps",
    "data.batch_size",
    "optimizer.optimizer.lr",
    "candidates.k",
    "candidates.scored_windows",
    "objective.temperature",
    "objective.continuation",
    "callbacks.index_refresh.every_n_steps",
    "seed",
    "ckpt",
)


def train(cfg: DictConfig) -> float | None:
    """Do one run. Returns `evaluation.metric`, for sweeps; None if the corpus has no labels."""
    with fast_imports():
        from dream.build import check_config, trainer_settings
    from dream.utils.launch import joined

    check_config(cfg)
    try:
        with joined(trainer_settings(cfg), "dream.commands.train:follow"):
            return _train(cfg)
    finally:
        gc.collect()  # the parts refer to each other: without this, the next job of a sweep would have two models


def follow() -> None:
    """Do the run as one of the processes that rank 0 has started."""
    import dream.utils.runtime  # noqa: F401  before torch
    from dream.utils.launch import joined

    with joined(None, ""):
        _train(None)


def _train(cfg: DictConfig | None) -> float | None:
    import lightning as L

    from dream.build import build_module, build_text, build_trainer
    from dream.runs.session import start_run
    from dream.runs.steps import set_steps
    from dream.utils import ranks

    with start_run(cfg) as run:
        cfg = run.cfg
        if run.finished:
            return run.metric
        L.seed_everything(cfg.seed, verbose=False)

        def build() -> "tuple[TextComponents, L.Trainer, RetrieverModule]":
            text = build_text(cfg)
            run.check(text.identity)
            trainer = build_trainer(cfg, text.corpus)
            module = build_module(cfg, text, trainer.strategy.root_device)
            set_steps(trainer, cfg.trainer, text.data)
            return text, trainer, module

        text, trainer, module = ranks.in_turn(build)
        ranks.share(module.encoder.state_dict().values())
        module.timer = run.timer
        run.begin()
        trainer.fit(module, text.data, ckpt_path=run.checkpoint, weights_only=True)
        return run.finish(trainer)


main = command("train", ABOUT, KEYS)(train)

if __name__ == "__main__":
    main()
