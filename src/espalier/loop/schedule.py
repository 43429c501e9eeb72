"""Learning rates as a function of the step alone."""

from __future__ import annotations

import math

from espalier.config.sections import OptimConfig


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Rate of step 0 <= step < steps.

    The rate rises linearly over the first `warmup * steps` steps (the first step is not 0), then follows the schedule
    down to `min_lr * lr`, which step number `steps` would have: cosine and linear over all that remains, wsd over the
    last `decay * steps`, constant never. Shares of the steps are rounded up.

    >>> c = OptimConfig(lr=1.0, schedule="linear", warmup=0.2)
    >>> [round(learning_rate(i, 10, c), 3) for i in range(10)]
    [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    """
    warm = _count(config.warmup, steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    falling = _count(config.decay, steps) if config.schedule == "wsd" else steps - warm
    done = max(0.0, (step - (steps - falling)) / max(1, falling))
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr * (config.min_lr + (1 - config.min_lr) * left)


def _count(share: float, steps: int) -> int:
    # 0.07 * 100 is 7.000000000000001, and 7 steps are meant.
    return math.ceil(share * steps - 1e-9)
