"""dream-serve: a search page and a JSON API over a finished run, on this machine only."""

from pathlib import Path

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

log = get_logger(__name__)

ABOUT = """
dream-serve shows a search page over a trained run: BM25, the encoder and their hybrid side by side. Ctrl-C ends it.
"""
KEYS = (
    "run",
    "port",
    "k",
    "gain",
    "trust",
)


def serve(cfg: DictConfig) -> None:
    """Open the run, then answer requests until Ctrl-C."""
    with fast_imports():
        from dream.evaluation.searcher import Searcher
    from dream.utils.errors import require, require_installed

    require_installed(("starlette", "uvicorn", "jinja2"), "serve", "run", cfg.run)
    require(cfg.k > 0, "k", cfg.k, "at least 1 document")
    require(0 <= cfg.port < 65_536, "port", cfg.port, "0 for any free port, or a port below 65536")
    from dream.serving.gain import open_gain
    from dream.serving.page import make_app
    from dream.serving.server import answer_requests, bind

    socket = bind(cfg.port)
    searcher = Searcher(cfg.run, trust=list(cfg.trust), data=cfg.paths.data)
    log.info(f"DREAM: searching corpus {searcher.corpus_name} with run {cfg.run}")
    log.info(f"  page  http://127.0.0.1:{socket.getsockname()[1]}/      Ctrl-C ends it")
    judge = open_gain(searcher, Path(cfg.run), list(cfg.trust), cfg.paths.data) if cfg.gain else None
    answer_requests(make_app(searcher, cfg.k, judge), socket)


main = command("serve", ABOUT, KEYS)(serve)

if __name__ == "__main__":
    main()
