"""dream-search: searches with a trained run, once or interactively."""

import functools
import re
import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

if TYPE_CHECKING:
    from dream.evaluation.searcher import Hit

log = get_logger(__name__)

ABOUT = """
dream-search "a question" searches with a trained run. Without a question, it asks for questions in the terminal.
"""
KEYS = (
    "run",
    "k",
    "mode",
    "trust",
)

OTHER_KEYS = ("query", "paths", "hydra")
OVERRIDE = re.compile(r"[+~]{0,2}[\w./@-]+=.*|~[\w./@]+", re.DOTALL)
SNIPPET_CHARACTERS = 240


def search(cfg: DictConfig, query: str | None = None) -> None:
    """Print the documents found for `query` or `cfg.query`; without both, read queries until an empty line."""
    with fast_imports():
        from dream.evaluation.searcher import MODES, Searcher
    from dream.utils.errors import require

    require(cfg.k > 0, "k", cfg.k, "at least 1 result")
    require(cfg.mode in MODES, "mode", cfg.mode, f"choose {', '.join(MODES)}")
    searcher = Searcher(cfg.run, trust=list(cfg.trust), data=cfg.paths.data)
    passages = len(searcher.store.passages)
    log.info(f"{passages:,} passages of corpus {searcher.corpus_name}, mode {cfg.mode}, run {cfg.run}")
    if query or cfg.query is not None:
        _show(searcher.search(query or str(cfg.query), cfg.k, cfg.mode))
        return
    while query := _ask():
        _show(searcher.search(query, cfg.k, cfg.mode))


def _ask() -> str:
    try:
        return input("\nquery (empty line ends) > ").strip()
    except EOFError:
        return ""


def _show(hits: "list[Hit]") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for rank, hit in enumerate(hits, start=1):
        name = f"{hit.id}  {hit.title}" if hit.title else hit.id
        console.print(f"[bold]{rank:2}. {escape(name)}[/bold]  [dim]{hit.score:.3f}[/dim]")
        snippet = " ".join(hit.text.split())
        console.print(f"    {escape(snippet[:SNIPPET_CHARACTERS])}{'…' * (len(snippet) > SNIPPET_CHARACTERS)}")


def is_option(word: str) -> bool:
    """Whether a word of the command line is an option or an override, and not a part of the query.

    Text with blanks overrides only known keys: "sorted(key=len) of a list" is a query.
    """
    if not OVERRIDE.fullmatch(word):
        return word.startswith("-") and not re.search(r"\s", word)
    return not re.search(r"\s", word) or re.split(r"[.=]", word.lstrip("+~"))[0] in (*KEYS, *OTHER_KEYS)


def main() -> None:
    """Run the command. Words that are neither overrides nor options are the query.

    Example: dream-search "read a file line by line" k=3
    """
    options = [word for word in sys.argv[1:] if is_option(word)]
    query = " ".join(word for word in sys.argv[1:] if word not in options)
    sys.argv[1:] = options
    # Not as an override: Hydra would change its backslashes, and read ${name} as another key.
    task = functools.update_wrapper(functools.partial(search, query=query), search)
    command("search", ABOUT, KEYS)(task)()


if __name__ == "__main__":
    main()
