"""Solutions by hand, from the probabilities of their steps, for the workbench."""

import math
from typing import Any

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.solutions import Solved

HOW = Resampling(seed=3, resamples=200)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def solved(
    p: list[float], labels: list[float | None] | None = None, right: bool | None = None, problem: str = ""
) -> Solved:
    return Solved(problem, tuple(map(logit, p)), tuple(labels or [None] * len(p)), right)


def values(found: Any, *names: str) -> list[Any]:
    return [found[name]["value"] for name in names]


def five() -> list[Solved]:
    """Three with a mistake (found; called a step late; not called) and two without (none called; one called)."""
    return [
        solved([0.9, 0.2, 0.1], [1, 0, None], problem="1"),
        solved([0.6, 0.7, 0.3], [1, 0, None], problem="2"),
        solved([0.8, 0.7], [0.5, 0], problem="3"),
        solved([0.9, 0.6], [1, 1], problem="4"),
        solved([0.9, 0.4], [1, 0.5], problem="5"),
    ]
