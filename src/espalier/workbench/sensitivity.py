"""What must not change a score: the order of siblings, and who else is in the batch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

S = TypeVar("S")
Scores = list[list[tuple[float, ...]]]
"""For each sample in order, the numbers after each of its reads."""
Score = Callable[[Sequence[list[S]]], Scores]
LIMIT = 1e-3


def sensitivity(score: Score[S], groups: Sequence[list[S]], *, seed: int = 0, limit: float = LIMIT) -> dict[str, Any]:
    """The largest absolute difference between scores of the same samples, scored in different company.

    order: with the siblings of every group reversed, and shuffled by seed. mates: every group scored alone against all
    groups together. siblings: every sample scored alone. All three are 0 up to rounding: a sample's score is a function
    of its own tokens. `score` takes groups and returns, for every sample in order, the numbers after each of its reads
    (`Learner.score`).

    spread: the standard deviation of all scores, the scale of the differences: `ok` is false if one of them exceeds
    limit * max(spread, 1e-6). By hand: scores that add the sample's place in its group (0, 1) differ by 1 when two
    siblings change places.
    """
    groups = [group for group in groups if group]
    together = score(groups)
    random_order = random.Random(seed)
    reverse, shuffled = [], []
    for group in groups:
        reverse.append(list(reversed(range(len(group)))))
        shuffled.append(random_order.sample(range(len(group)), len(group)))
    order = 0.0
    for places in (reverse, shuffled):
        order = max(order, _largest_difference(together, _in_order(score, groups, places)))
    mates = _largest_difference(together, _one_by_one(score, groups))
    samples = [[sample] for group in groups for sample in group]
    siblings = _largest_difference(together, _one_by_one(score, samples))
    spread = _standard_deviation(together)
    return {
        "samples": len(together),
        "order": order,
        "mates": mates,
        "siblings": siblings,
        "spread": spread,
        "limit": limit,
        "ok": max(order, mates, siblings) <= limit * max(spread, 1e-6),
    }


def _one_by_one(score: Score[S], groups: Sequence[list[S]]) -> Scores:
    """Scores of the groups, each scored alone."""
    scores: Scores = []
    for group in groups:
        scores += score([group])
    return scores


def _in_order(score: Score[S], groups: Sequence[list[S]], orders: Sequence[list[int]]) -> Scores:
    """Scores of the groups with their siblings in another order, put back into the old one."""
    reordered = []
    for group, order in zip(groups, orders, strict=True):
        reordered.append([group[place] for place in order])
    scores = iter(score(reordered))
    restored: Scores = []
    for order in orders:
        by_place = {place: next(scores) for place in order}
        restored += [by_place[place] for place in sorted(order)]
    return restored


def _largest_difference(one: Scores, other: Scores) -> float:
    """The largest absolute difference; infinite if one of the numbers is nan."""
    largest = 0.0
    for reads, other_reads in zip(one, other, strict=True):
        for numbers, other_numbers in zip(reads, other_reads, strict=True):
            for x, y in zip(numbers, other_numbers, strict=True):
                # nan is neither larger nor smaller than a number, so that max would lose it.
                largest = math.inf if math.isnan(x - y) else max(largest, abs(x - y))
    return largest


def _standard_deviation(scores: Scores) -> float:
    numbers: list[float] = []
    for reads in scores:
        for read in reads:
            numbers += read
    count = max(1, len(numbers))
    mean = sum(numbers) / count
    variance = sum((x - mean) ** 2 for x in numbers) / count
    return float(variance**0.5)
