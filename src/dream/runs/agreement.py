"""What a resumed run must have in common with the run that wrote the checkpoint."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dream.utils.errors import ConfigError, DataError

# Keys that decide what a run learns: they cannot change in the middle of it. Corpora are compared by their content.
FIXED = ("seed", "data", "encoder", "scorer", "objective", "candidates")
# Keys below them that may: they only decide how it is computed, or follow from trainer.max_steps.
FREE = {
    "data.stores_dir",
    "data.workers",
    "encoder.gradient_checkpointing",
    "scorer.cache_megabytes",
    "scorer.data_dir",
    "scorer.scoring.compile",
    "scorer.scoring.tokens_per_forward",
    "candidates.schedule_steps",
}


def changed_keys(before: dict[str, Any], now: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Fixed keys that differ: name → (value of the run before, value now)."""
    after = OmegaConf.to_container(now, resolve=True)
    assert isinstance(after, dict)
    old, new = (_flat({name: config.get(name) for name in FIXED}) for config in (before, after))
    return {
        key: (old.get(key), new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key not in FREE and not key.startswith("objective.finder.")
    }


def refuse_changes(before: dict[str, Any], now: DictConfig) -> None:
    """Raise ConfigError, naming the first key, if the config differs from that of the run to resume."""
    for key, (old, new) in changed_keys(before, now).items():
        raise ConfigError(key, new, f"the run to resume was started with {old}; resume it with that, or start another "
                          "run from one of its checkpoints with ckpt=FILE")  # fmt: skip


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def identity(store_hash: str, encoder: Any) -> dict[str, str]:
    """What the weights in a checkpoint belong to: the corpus as it was cut and tokenized, and the kind of encoder."""
    return {"store": store_hash, "encoder": type(encoder).__name__}


def refuse_other(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise DataError if a checkpoint belongs to another corpus, tokenizer, cut or encoder than this run."""
    for what, expected in ours.items():
        if theirs.get(what) != expected:
            raise DataError(
                f"ckpt: the checkpoint was made with another {what} ({theirs.get(what)}, this run has {expected}); "
                "resume with the corpus and the config of the run that wrote it"
            )
