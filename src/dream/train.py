"""dream-train: trains a retriever without labels, then says what it learnt."""

from omegaconf import DictConfig

from dream.cli import command


def train(cfg: DictConfig) -> float | None:
    """One run. Returns `evaluation.metric`, for sweeps; None where the corpus has no labels."""
    import lightning as L

    from dream import runs
    from dream.assembly import assemble, retriever

    L.seed_everything(cfg.seed, verbose=False)
    with runs.start(cfg) as run:
        if run.summary is not None:
            return runs.already_finished(cfg, run)
        parts = assemble(cfg)
        module = retriever(cfg, parts)
        trainer = runs.trainer(cfg, parts.corpus)
        comparison = runs.compare_before(cfg, run, trainer, parts, module)
        runs.announce_training(cfg, run)
        trainer.fit(module, datamodule=parts.data, ckpt_path=run.checkpoint, weights_only=True)
        return runs.finish(run, cfg, trainer, parts, comparison)


main = command("train")(train)

if __name__ == "__main__":
    main()
