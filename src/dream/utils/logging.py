"""The logger of all messages. It writes to the terminal and to `train.log` in the run's folder. Only rank 0 writes.

`DREAM_LOG_LEVEL=WARNING` shows fewer messages, `DEBUG` more.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dream.utils.ranks import speaks

if TYPE_CHECKING:
    from rich.table import Table

NAME = "dream"
FILE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class TerminalHandler(logging.Handler):
    """Prints to the current `sys.stdout` without delay, even if it is piped. Progress bars are drawn below the line."""

    def emit(self, record: logging.LogRecord) -> None:
        if not speaks() or getattr(record, "file_only", False):
            return
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm = sys.modules.get("tqdm")  # no import: if tqdm is not loaded, there is no progress bar
        if tqdm is None:
            print(f"{prefix}{record.getMessage()}", flush=True)
            return
        with tqdm.tqdm.external_write_mode():
            print(f"{prefix}{record.getMessage()}", flush=True)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: `log = get_logger(__name__)`."""
    return logging.getLogger(name if name.startswith(NAME) else f"{NAME}.{name}")


def log_table(table: "Table", width: int | None = None) -> None:
    """Show a rich table in the terminal, and write it to the run's log as plain text."""
    import io

    from rich.console import Console

    Console(width=width).print(table)
    plain = io.StringIO()
    Console(file=plain, width=width or 160).print(table)
    get_logger(NAME).info(f"\n{plain.getvalue()}", extra={"file_only": True})


def quiet_lightning() -> None:
    """Let Lightning's Trainer report only warnings: not its devices, and no advice about other packages."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


@contextmanager
def log_to_file(file: Path) -> Iterator[None]:
    """Also append all messages inside the block to this file."""
    if not speaks():
        yield
        return
    handler = logging.FileHandler(file, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FILE_FORMAT))
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _configure() -> None:
    logger = logging.getLogger(NAME)
    logger.propagate = False  # Hydra adds its own handler to the root logger
    level = os.environ.get("DREAM_LOG_LEVEL", "INFO").upper()
    known = level in logging.getLevelNamesMapping()
    logger.setLevel(level if known else "INFO")
    if not logger.handlers:
        logger.addHandler(TerminalHandler())
    if not known:
        logger.warning(f"DREAM_LOG_LEVEL={level}: no such level; using INFO. Choose DEBUG, INFO, WARNING or ERROR")


_configure()
