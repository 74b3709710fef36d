"""dream-train: train a retriever without labels, then report what it learnt."""

from omegaconf import DictConfig

from dream.commands.app import command

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
    import lightning as L

    from dream.build import build_module, build_text, build_trainer, check_config
    from dream.runs.session import start_run

    check_config(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    with start_run(cfg) as run:
        if run.finished:
            return run.metric
        text = build_text(cfg)
        run.check(text.identity)
        module = build_module(cfg, text)
        trainer = build_trainer(cfg, text.corpus)
        run.begin()
        trainer.fit(module, text.data, ckpt_path=run.checkpoint, weights_only=True)
        return run.finish(trainer)


main = command("train", ABOUT, KEYS)(train)

if __name__ == "__main__":
    main()
