"""dream-pretrain: trains the scratch scorer of a corpus ahead of time, and measures how much it reads its passages."""

from omegaconf import DictConfig

from dream.cli import command


def pretrain(cfg: DictConfig) -> float:
    """Train the scorer, or find it cached; returns its gain in nats per target token, for sweeps."""
    import json

    import lightning as L

    from dream.assembly import assemble
    from dream.errors import require
    from dream.runtime import say
    from dream.scorers.scratch import ScratchScorer

    L.seed_everything(cfg.seed, verbose=False)
    say(f"DREAM: pretraining a language model on corpus {cfg.corpus.name}")
    say(f"  curves      tensorboard --logdir {cfg.paths.data}/scorers --host localhost")
    parts = assemble(cfg)
    scorer = parts.scorer
    require(isinstance(scorer, ScratchScorer), "scorer", cfg.scorer._target_, "only scorer=scratch is trained here")
    scorer.load(parts.store)
    folder = scorer.folder(parts.store)
    gain = json.loads((folder / "gain.json").read_text())
    say(f"The scorer is in {folder}")
    for name, nats in gain.items():
        say(f"  {name:24} {nats:8.3f}")
    return gain["best_of_neighbours"]


main = command("pretrain")(pretrain)

if __name__ == "__main__":
    main()
