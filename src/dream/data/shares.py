"""How the ranks of a job share the windows of a step."""

import numpy as np

from dream.utils import ranks
from dream.utils.errors import require


def share_of(batch_size: int, scored: int, rank: int, world: int) -> np.ndarray:
    """A rank's slots of a batch: its share of the scored windows, which come first, and of the others.

    Example:
        >>> [share_of(8, 4, rank, 2).tolist() for rank in (0, 1)]
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    own, others = scored // world, (batch_size - scored) // world
    first = np.arange(rank * own, (rank + 1) * own)
    return np.concatenate([first, np.arange(scored + rank * others, scored + (rank + 1) * others)])


def check_shares(batch_size: int, scored_windows: int | None) -> None:
    """Raise ConfigError if the windows of a step cannot be divided over the ranks."""
    world = ranks.world()
    remedy = f"it counts the windows of all {world} processes: choose a multiple of {world}"
    require(batch_size % world == 0, "data.batch_size", batch_size, remedy)
    require(batch_size >= 2 * world, "data.batch_size", batch_size, f"at least 2 windows for each of {world} processes")
    fits = scored_windows is None or scored_windows % world == 0
    require(fits, "candidates.scored_windows", scored_windows, remedy)
