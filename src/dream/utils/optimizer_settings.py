"""Makes a resumed optimizer and schedule use the values of the config instead of those of the checkpoint."""

import inspect
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from dream.utils.logging import get_logger

log = get_logger(__name__)


class OptimizerSettings:
    """Settings of a new optimizer and its schedule, such as learning rate and weight decay, to apply after a resume.

    A checkpoint restores the optimizer's moments and the schedule's step, which are kept. It also restores the settings
    of the run that wrote it. `apply` replaces them. It also computes the learning rate of a `LambdaLR` from its step
    again: a run that is trained further has another one there, and a finished run had 0.

    Args:
        optimizer: a new optimizer, built from the config.
        schedule: the schedule of this optimizer, built from the config.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self.groups = [
            {k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups
        ]
        parameters = inspect.signature(type(schedule).__init__).parameters
        self.arguments = {
            k: v for k, v in vars(schedule).items() if k in parameters and k not in ("optimizer", "last_epoch")
        }
        self.base_lrs = list(schedule.base_lrs)

    def apply(self) -> None:
        """Replace the restored settings by those of the config, and log the changes."""
        changes = self._changes()
        if not changes and not isinstance(self.schedule, LambdaLR):
            return
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            group |= settings
        for name, value in self.arguments.items():
            setattr(self.schedule, name, value)
        factors = self._factors()
        self.schedule.base_lrs = list(self.base_lrs)
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, factors, strict=True):
            group["lr"] = base * factor
        self.schedule._last_lr = self._lrs()  # type: ignore[assignment]
        if changes:
            log.info(f"Resuming with other optimizer settings than before: {', '.join(changes)}")

    def _factors(self) -> list[float]:
        """What each base learning rate is multiplied by at the restored step."""
        if isinstance(self.schedule, LambdaLR):
            return [float(function(self.schedule.last_epoch)) for function in self.schedule.lr_lambdas]
        return [lr / float(base) if base else 0.0 for lr, base in zip(self._lrs(), self.schedule.base_lrs, strict=True)]

    def _lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _changes(self) -> list[str]:
        """Texts such as `lr 0.01 → 0.0001`, for the first group that differs."""
        found: dict[str, str] = {}
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            for name, value in settings.items():
                if _differs(group.get(name), value):
                    shown = "lr" if name == "initial_lr" else name
                    found.setdefault(shown, f"{shown} {group.get(name)} → {value}")
        for name, value in self.arguments.items():
            if _differs(old := getattr(self.schedule, name), value):
                found.setdefault(name, f"{name} {old} → {value}")
        return list(found.values())


def _differs(old: Any, new: Any) -> bool:
    """Whether values differ. Functions, such as the factor of a LambdaLR, do not count: no checkpoint restores them.

    FSDP2 restores tuples as lists.
    """
    old, new = (list(value) if isinstance(value, tuple) else value for value in (old, new))
    return not callable(new) and not (isinstance(new, list) and any(map(callable, new))) and old != new
