"""dream-search: asks the index of a trained run, once or interactively."""

import re
import sys

from omegaconf import DictConfig

from dream.cli import command

OVERRIDE = re.compile(r"[+~]{0,2}[\w./@-]+=.*|~[\w./@]+", re.DOTALL)
SNIPPET_CHARACTERS = 240


def search(cfg: DictConfig) -> None:
    """Answer `query`; without one, read queries from the terminal until an empty line."""
    from dream.errors import require
    from dream.evaluation.searcher import Searcher
    from dream.runtime import say

    require(cfg.k > 0, "k", cfg.k, "at least 1 result")
    searcher = Searcher(cfg.run, cfg.mode)
    say(f"{searcher.passages:,} passages of corpus {searcher.corpus_name}, mode {cfg.mode}, run {cfg.run}")
    if cfg.query is not None:
        _show(searcher, str(cfg.query), cfg.k)
        return
    while query := _ask():
        _show(searcher, query, cfg.k)


def _ask() -> str:
    try:
        return input("\nquery (empty line ends) > ").strip()
    except EOFError:
        return ""


def _show(searcher, query: str, k: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for rank, hit in enumerate(searcher.search(query, k), start=1):
        console.print(f"[bold]{rank:2}. {escape(hit.name)}[/bold]  [dim]{hit.score:.3f}[/dim]")
        snippet = " ".join(hit.text.split())
        console.print(f"    {escape(snippet[:SNIPPET_CHARACTERS])}{'…' * (len(snippet) > SNIPPET_CHARACTERS)}")


def main() -> None:
    """Words that are no overrides and no options are the query: dream-search "read a file line by line" k=3."""
    options = [word for word in sys.argv[1:] if word.startswith("-") or OVERRIDE.fullmatch(word)]
    query = " ".join(word for word in sys.argv[1:] if word not in options)
    if query:
        escaped = query.replace("\\", "\\\\").replace("'", "\\'")
        options.append(f"query='{escaped}'")
    sys.argv[1:] = options
    command("search")(search)()


if __name__ == "__main__":
    main()
