"""dream-pretrain: trains the scratch scorer of a corpus in advance, and measures how much it uses its passages."""

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

log = get_logger(__name__)

ABOUT = """
dream-pretrain trains the scratch scorer of a corpus, or finds it cached in data/scorers.
"""
KEYS = (
    "scorer.training.max_steps",
    "scorer.training.batch_size",
    "scorer.training.learning_rate",
    "scorer.width",
    "scorer.layers",
    "scorer.vocabulary",
    "scorer.seed",
)


def pretrain(cfg: DictConfig) -> float:
    """Train the scorer, or find it cached; returns its gain in nats per target token, for sweeps."""
    import json

    with fast_imports():
        import lightning as L
        import torch

        from dream.build import build_text
    from dream.scorers.pretraining.scratch import ScratchScorer
    from dream.utils.errors import require

    L.seed_everything(cfg.seed, verbose=False)
    log.info(f"DREAM: pretraining a language model on corpus {cfg.corpus.name}")
    log.info(f"  curves      tensorboard --logdir {cfg.paths.data}/scorers --host localhost")
    text = build_text(cfg)
    scorer = text.scorer
    require(isinstance(scorer, ScratchScorer), "scorer", cfg.scorer._target_, "only scorer=scratch is trained here")
    scorer.to("cuda" if torch.cuda.is_available() else "cpu").load(text.store)
    folder = scorer.folder(text.store)
    gain = json.loads((folder / "gain.json").read_text())
    log.info(f"The scorer is in {folder}")
    for name, nats in gain.items():
        log.info(f"  {name:24} {nats:8.3f}")
    return gain["best_of_neighbours"]


main = command("pretrain", ABOUT, KEYS)(pretrain)

if __name__ == "__main__":
    main()
