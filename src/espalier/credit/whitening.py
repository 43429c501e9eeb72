"""Whitening: numbers of a whole rollout brought to standard deviation 1. Lists of plain floats, one a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from espalier.credit.advantages import equal, mean

SMALL = 1e-8
"""Added to the variance before it divides (TRL 0.x, arXiv:2501.03262's released code)."""


def whiten(streams: Sequence[Sequence[float]], *, keep_mean: bool = False) -> list[list[float]]:
    """y = (x - mean) / sqrt(var + 1e-8), mean and population variance over all numbers of all streams; with `keep_mean`
    the mean is added back. Numbers that are all exactly equal become 0, or stay as they are.

    1, 3 and 5 have the mean 3 and the variance 8/3:

    >>> [[round(y, 4) for y in stream] for stream in whiten([[1.0, 3.0], [5.0]])]
    [[-1.2247, 0.0], [1.2247]]
    >>> [[round(y, 4) for y in stream] for stream in whiten([[1.0, 3.0], [5.0]], keep_mean=True)]
    [[1.7753, 3.0], [4.2247]]
    """
    numbers = [x for stream in streams for x in stream]
    if equal(numbers):
        return [list(stream) if keep_mean else [0.0] * len(stream) for stream in streams]
    center = mean(numbers)
    scale = math.sqrt(math.fsum((x - center) ** 2 for x in numbers) / len(numbers) + SMALL)
    shift = center if keep_mean else 0.0
    return [[(x - center) / scale + shift for x in stream] for stream in streams]
