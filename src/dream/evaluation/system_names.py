"""Names of the systems that dream-evaluate compares: the values allowed in `systems=[...]`."""

import difflib
import re
from collections.abc import Sequence

from dream.runs.layout import ENCODER, UNTRAINED_ENCODER
from dream.utils.errors import ConfigError, require

OF_A_RUN = {"run": ENCODER, "untrained": UNTRAINED_ENCODER}  # system → folder in the run's folder
FUSIONS = ("hybrid", "hybrid_weighted")  # fusions of BM25 with a dense system
PUBLISHED = ("st", "hf")  # models of sentence-transformers and of transformers
ALLOWED = ("bm25", *OF_A_RUN, *FUSIONS, "st:NAME", "hf:NAME", "hybrid:SYSTEM", "hybrid_weighted:SYSTEM")


def dense_part(system: str) -> str | None:
    """The dense system of this name, or the dense system that it fuses with BM25. None for BM25 itself.

    Example:
        >>> dense_part("hybrid:st:org/model"), dense_part("hybrid"), dense_part("bm25")
        ('st:org/model', 'run', None)

    Raises:
        ConfigError: there is no such system.
    """
    kind, _, name = system.partition(":")
    if kind in FUSIONS:
        part = dense_part(name) if name else "run"
        require(part is not None and not name.startswith(FUSIONS), "systems", system, "fuses BM25 with a dense system")
        return part
    if kind in PUBLISHED and name:
        return system
    if system in OF_A_RUN:
        return system
    if system != "bm25":
        close = difflib.get_close_matches(system, ALLOWED, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError("systems", system, f"no such system; {hint}choose from {', '.join(ALLOWED)}")
    return None


def is_tuned(system: str) -> bool:
    """Whether the system has a weight that is tuned on labels."""
    return system.partition(":")[0] == "hybrid_weighted"


def short_names(systems: Sequence[str]) -> dict[str, str]:
    """Names for the tables. Paths are shortened to their last two parts, unless two names would become equal."""
    short = {system: re.sub(r":[^:]*/([^/:]+/[^/:]+)/?$", r":\1", system) for system in systems}
    return short if len(set(short.values())) == len(systems) else {system: system for system in systems}
