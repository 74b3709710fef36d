"""Metrics as a table in a file, also of a run that was interrupted and resumed."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment


class CSVLogger(LightningCSVLogger):
    """Lightning's CSV logger, which would delete the rows of the run that it continues. This one keeps them.

    Rows of the first step that is logged, and of later steps, are replaced: the run repeats these steps.
    """

    _earlier: list[dict[str, Any]] | None = None  # rows in the file when the run was resumed

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            earlier = file.with_name("metrics.csv.earlier")  # still there if this method was killed
            if file.exists() and not earlier.exists():
                file.replace(earlier)  # Lightning would delete it
            if earlier.exists():
                self._earlier = _rows(earlier)
                self._write(self._earlier)
                earlier.unlink()
        return super().experiment

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        _ = self.experiment  # reads the earlier rows
        if self._earlier is not None and step is not None:
            kept = [row for row in self._earlier if int(row["step"]) < step]
            if len(kept) < len(self._earlier):
                self._write(kept)
            self._earlier = None
        super().log_metrics(dict(metrics), step)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file by these rows: written under a temporary name, then renamed."""
        writer = super().experiment
        file = Path(writer.metrics_file_path)
        writer.metrics_file_path = f"{file}.tmp"
        Path(writer.metrics_file_path).unlink(missing_ok=True)
        writer.metrics = [*rows]
        writer.save()
        if rows:
            Path(writer.metrics_file_path).replace(file)
        else:
            file.unlink(missing_ok=True)
        writer.metrics_file_path = str(file)


def _rows(file: Path) -> list[dict[str, Any]]:
    """The complete rows of the table, without empty cells."""
    with file.open(newline="") as lines:
        rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(lines)]
    return [row for row in rows if row.get("step", "").isdigit()]
