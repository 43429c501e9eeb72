"""Rejection sampling: which answers are trained on. Scores are one list a group; None is an answer that may not be.

An answer that scores no more than the lowest of all scores is never chosen: it is no better than the worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from espalier.credit.advantages import mean

Scores = Sequence[Sequence[float | None]]


def top(groups: Scores, share: float) -> list[list[bool]]:
    """The best floor(share G), at least one, of each group of G; of equal scores the earlier.

    >>> top([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, None]], 0.2)
    [[False, True, False], [False, False, False], [True, False, False]]
    """
    lowest = min(_known(groups), default=0.0)
    out = []
    for scores in groups:
        best = _best(scores, _count(share, len(scores)))
        out.append([place in best and score != lowest for place, score in enumerate(scores)])
    return out


def lead(groups: Scores, share: float, margin: float) -> list[list[bool]]:
    """The best floor(share n), at least one, of all n answers, as far as they are at least the mean of all plus
    `margin`; of equal scores the earlier.

    Scores 0, 1, 2, 3 with share 1/2 and margin 1 have the mean 1.5, so that 3 alone stays:

    >>> lead([[0.0, 1.0], [2.0, 3.0]], 0.5, 1.0)
    [[False, False], [False, True]]
    """
    known = _known(groups)
    lowest, least = min(known, default=0.0), mean(known) + margin
    flat = [score for scores in groups for score in scores]
    best = _best(flat, _count(share, len(flat)))
    out, start = [], 0
    for scores in groups:
        places = range(start, start + len(scores))
        out.append([place in best and flat[place] != lowest and (flat[place] or 0.0) >= least for place in places])
        start += len(scores)
    return out


def _known(groups: Scores) -> list[float]:
    return [score for scores in groups for score in scores if score is not None]


def _count(share: float, size: int) -> int:
    return max(1, math.floor(share * size + 1e-9))  # 0.2 of 5 is 1, although 0.2 is a little above a fifth


def _best(scores: Sequence[float | None], count: int) -> set[int]:
    """The places of the `count` highest scores."""
    ranked = sorted((-score, place) for place, score in enumerate(scores) if score is not None)
    return {place for _, place in ranked[:count]}
