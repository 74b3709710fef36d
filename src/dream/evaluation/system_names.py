"""Names of the systems that dream-evaluate compares: the values allowed in `systems=[...]`."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dream.runs.layout import ENCODER, UNTRAINED_ENCODER
from dream.utils.errors import ConfigError, require

OF_A_RUN = {"run": ENCODER, "untrained": UNTRAINED_ENCODER}  # system → folder in the run's folder
FUSIONS = ("hybrid", "hybrid_weighted")  # fusions of BM25 with a dense system
PUBLISHED = ("st", "hf")  # models of sentence-transformers and of transformers
RERANKERS = ("lm", "lm_weighted")  # a language model alone, and mixed with the ranking that it ranks again
ALLOWED = ("bm25", *OF_A_RUN, *FUSIONS, "st:NAME", "hf:NAME", "hybrid:SYSTEM", "hybrid_weighted:SYSTEM", *RERANKERS,
           "lm:hf:NAME", "lm@SYSTEM")  # fmt: skip
TUNED = ("hybrid_weighted", "lm_weighted")  # systems with a weight that is tuned on labels


@dataclass(frozen=True)
class Reranked:
    """A system whose first documents are ranked again by a language model.

    Attributes:
        first: the system that is ranked again.
        model: hub name or folder of the language model; None: `lm.name` if it is set, otherwise the run's scorer.
        weighted: whether the scores of both are mixed.
    """

    first: str
    model: str | None
    weighted: bool


def reranked(system: str) -> Reranked | None:
    """The parts of a system `lm…`. None for other systems.

    Example:
        >>> reranked("lm_weighted:hf:org/model@hybrid")
        Reranked(first='hybrid', model='org/model', weighted=True)

    Raises:
        ConfigError: the language model is not `hf:NAME`, or the system after "@" does not exist.
    """
    asked, at, first = system.partition("@")
    kind, colon, model = asked.partition(":")
    if kind not in RERANKERS:
        return None
    name = model.removeprefix("hf:")
    require(bool(name) and name != model if colon else True, "systems", system,
            f"the language model is written {kind}:hf:NAME, a hub name or a folder; the ranking that it ranks again, "
            f"{kind}@SYSTEM")  # fmt: skip
    require(bool(first) or not at, "systems", system, f"write a system after @, e.g. {asked}@run")
    require(not first.startswith(RERANKERS), "systems", system, "a language model ranks another kind of system again")
    dense_part(first or "bm25")
    return Reranked(first or "bm25", name or None, kind == "lm_weighted")


def dense_part(system: str) -> str | None:
    """The dense system of this name, or the dense system that it fuses with BM25 or ranks again. None without one.

    Example:
        >>> dense_part("hybrid:st:org/model"), dense_part("hybrid"), dense_part("bm25")
        ('st:org/model', 'run', None)

    Raises:
        ConfigError: there is no such system.
    """
    if lm := reranked(system):
        return dense_part(lm.first)
    kind, _, name = system.partition(":")
    if kind in FUSIONS:
        part = dense_part(name) if name else "run"
        require(
            part is not None and not name.startswith((*FUSIONS, *RERANKERS)),
            "systems",
            system,
            "fuses BM25 with a dense system",
        )
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
    lm = reranked(system)
    return is_tuned(lm.first) or lm.weighted if lm else system.partition(":")[0] in TUNED


def untuned(system: str) -> str:
    """The same system without a tuned weight, for messages."""
    return system.replace("_weighted", "")


def teachers_of(systems: Sequence[str]) -> list[str]:
    """The systems in which a language model ranks BM25's documents again."""
    return [system for system in systems if (lm := reranked(system)) and lm.first == "bm25"]


def short_names(systems: Sequence[str]) -> dict[str, str]:
    """Names for the tables. Paths are shortened to their last two parts, unless two names would become equal."""
    short = {system: re.sub(r":[^:]*/([^/:]+/[^/:]+)/?$", r":\1", system) for system in systems}
    return short if len(set(short.values())) == len(systems) else {system: system for system in systems}
