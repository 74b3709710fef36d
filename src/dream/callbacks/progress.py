"""Lightning's progress bar, with few updates if the output is not a terminal."""

import sys

from lightning.pytorch.callbacks import TQDMProgressBar

REFRESH_WITHOUT_TERMINAL = 25  # steps between two updates; in a log file, each update is a line


class TrainProgress(TQDMProgressBar):
    """Shows the step, the speed and a few metrics, without the version number of the logger."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else REFRESH_WITHOUT_TERMINAL)

    def get_metrics(self, trainer, pl_module):
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
