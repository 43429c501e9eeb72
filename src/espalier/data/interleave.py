"""Fixed shares, drawn evenly: after any number of draws, every share is met to less than one draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

GRID = 1_000_000
"""The longest period: shares are exact if a shorter one meets them."""


def weights_of(shares: Sequence[Fraction]) -> list[int]:
    """Integers proportional to `shares`, which are positive and sum to 1: draws of each in one period.

    >>> weights_of([Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)])
    [5, 3, 2]

    Shares whose common denominator is above a million are taken to the nearest millionth, at least one.
    """
    period = math.lcm(*(share.denominator for share in shares))
    if period <= GRID:
        return [int(share * period) for share in shares]
    weights = [max(1, round(share * GRID)) for share in shares]
    weights[weights.index(max(weights))] += GRID - sum(weights)
    return weights


def interleave(weights: Sequence[int]) -> NDArray[np.uint16]:
    """A sequence of sum(weights) draws in which i occurs weights[i] times, as evenly as possible.

    >>> interleave([2, 1]).tolist(), interleave([5, 3, 2]).tolist()
    ([0, 1, 0], [0, 1, 0, 2, 0, 1, 0, 2, 1, 0])

    With k kinds and shares w_i / W, the first n draws hold i between n w_i / W - 1 + c and n w_i / W + 1 - c times,
    c = 1 / (2 k - 2), so a window of n draws deviates from its share by less than 2, and for two kinds by at most 1.
    The bounds hold across repetitions too, because one period meets every share exactly. Of the kinds that lag by at
    least c, the one with the earliest deadline is drawn (Tijdeman, The chairman assignment problem, 1980).
    """
    total, kinds = sum(weights), range(len(weights))
    if len(kinds) == 1:
        return np.zeros(total, np.uint16)
    # Scaled by 2 (k - 1) W, all in integers: lag_i = w_i n - x_i W, c = W / (2 (k - 1)).
    scale = 2 * (len(kinds) - 1)
    lags, counts = [0] * len(kinds), [0] * len(kinds)
    deadlines = [(scale - 1) / weight for weight in weights]
    drawn = np.empty(total, np.uint16)
    for n in range(total):
        best, chosen = math.inf, -1
        for i in kinds:
            lags[i] += weights[i]
            if lags[i] * scale >= total and deadlines[i] < best:
                best, chosen = deadlines[i], i
        lags[chosen] -= total
        counts[chosen] += 1
        deadlines[chosen] = (scale * (counts[chosen] + 1) - 1) / weights[chosen]
        drawn[n] = chosen
    return drawn
