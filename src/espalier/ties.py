"""When two levels (ranks, scores) are equal: up to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

ROUNDING = 1e-9
"""Levels no further apart than this times max(1, |level|) are a tie, such as 0.1 + 0.2 and 0.3."""


def settled(levels: Sequence[float | None]) -> list[float | None]:
    """Levels, with those that differ by rounding alone made equal: each becomes the least level that is at most
    `ROUNDING` max(1, |that level|) below it, so that whether two are equal has one answer everywhere. None stays None.

    >>> settled([0.1 + 0.2, 0.3, None, 0.31])
    [0.3, 0.3, None, 0.31]
    """
    known = {level for level in levels if level is not None}
    least_of: dict[float, float] = {}
    least = -math.inf
    # A tie is measured from its least level, not from neighbour to neighbour: a chain of small gaps
    # is no single tie.
    for level in sorted(known):
        if not least_of or level - least > ROUNDING * max(1.0, abs(least)):
            least = level
        least_of[level] = least
    return [None if level is None else least_of[level] for level in levels]


def closer(a: float, b: float, gap: float) -> bool:
    """Whether two levels are less than `gap` apart, by more than rounding.

    0.3 and 0.2 are 0.1 apart, although 0.3 - 0.2 is 0.09999999999999998:

    >>> closer(0.3, 0.2, 0.1), closer(0.3, 0.21, 0.1)
    (False, True)
    """
    return gap - abs(a - b) > ROUNDING * max(1.0, abs(a), abs(b))
