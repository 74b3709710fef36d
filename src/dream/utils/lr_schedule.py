"""Schedule of the learning rate."""

import torch
from torch.optim.lr_scheduler import LambdaLR

from dream.utils.errors import require


def warmup_then_linear(optimizer: torch.optim.Optimizer, max_steps: int, warmup_steps: int) -> LambdaLR:
    """Linear increase from 0 over `warmup_steps` optimizer steps, then linear decrease to 0 at `max_steps`.

    In a short run, the increase takes at most a quarter of the steps.
    """
    require(warmup_steps >= 0, "optimizer.schedule.warmup_steps", warmup_steps, "0 or more steps")
    warmup_steps = min(warmup_steps, max_steps // 4)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))

    return LambdaLR(optimizer, factor)
