"""Checks that a resumed run agrees with the run that wrote the checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from dream.runs.config_file import without_secrets
from dream.utils.errors import ConfigError, DataError

# Keys that affect what a run learns. They must not change during a run. Corpora are compared by their content; their
# language is compared, too, because BM25's candidates depend on it.
FIXED = ("seed", "data", "encoder", "scorer", "objective", "candidates")
# Keys inside these sections that may change: they do not affect the result, or follow from trainer.max_steps.
FREE = {
    "data.stores_dir",
    "data.workers",
    "encoder.gradient_checkpointing",
    "encoder.chunk",
    "scorer.cache_megabytes",
    "scorer.data_dir",
    "scorer.device_map",
    "scorer.scoring.compile",
    "scorer.scoring.tokens_per_forward",
    "scorer.url",
    "scorer.concurrency",
    "scorer.retries",
    "scorer.seconds",
    "scorer.token_limit",
    "scorer.key_variable",
    "candidates.schedule_steps",
}


def changed_keys(before: dict[str, Any], now: DictConfig, keys: Sequence[str] = FIXED) -> dict[str, tuple[Any, Any]]:
    """Keys that differ: name → (value when the run was started, value now). Keys in FREE are left out.

    Args:
        before: the config of the run, resolved.
        now: the other config.
        keys: the keys and sections that are compared, in addition to the language of the corpus.
    """
    after = without_secrets(now)  # as the saved config is
    assert isinstance(after, dict)
    old, new = _flat(before), _flat(after)
    sections = tuple(f"{key}." for key in (*keys, "corpus.language"))
    compared = sorted(key for key in {*old, *new} if f"{key}.".startswith(sections) and key not in FREE)
    return {key: (old.get(key), new.get(key)) for key in compared if old.get(key) != new.get(key)}


def refuse_changes(before: dict[str, Any], now: DictConfig) -> None:
    """Raise ConfigError for the first fixed key that differs from the config of the run to resume."""
    for key, (old, new) in changed_keys(before, now).items():
        raise ConfigError(key, new, f"the run to resume was started with {old}; resume it with this value, or start "
                          "another run from one of its checkpoints with ckpt=FILE")  # fmt: skip


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def identity(store_hash: str, encoder: Any) -> dict[str, str]:
    """What the weights of a checkpoint depend on: the cut and tokenised corpus, and the kind of encoder."""
    return {"store": store_hash, "encoder": type(encoder).__name__}


def refuse_other(of_checkpoint: Mapping[str, str], of_run: Mapping[str, str]) -> None:
    """Raise DataError if a checkpoint belongs to another corpus, tokenizer, cut or encoder than this run."""
    for part, expected in of_run.items():
        if (found := of_checkpoint.get(part)) != expected:
            raise DataError(
                f"ckpt: the checkpoint was made with another {part} ({found}, this run has {expected}); "
                "resume with the corpus and the config of the run that wrote it"
            )
