"""What must not change a score: the order of siblings, and who else is in the batch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

S = TypeVar("S")
Score = Callable[[Sequence[list[S]]], list[list[tuple[float, ...]]]]
LIMIT = 1e-3


def sensitivity(score: Score[S], groups: Sequence[list[S]], *, seed: int = 0, limit: float = LIMIT) -> dict[str, Any]:
    """The largest absolute difference between scores of the same samples, scored differently.

    order: with the siblings of every group reversed, and shuffled by seed. mates: every group scored alone against all
    groups together. siblings: every sample scored alone. All three are 0 up to rounding: a sample's score is a function
    of its own tokens. `score` takes groups and returns, for every sample in order, the numbers after each of its reads
    (`Learner.score`).

    spread: the standard deviation of all scores, which the differences are held against: `ok` is false where one of
    them exceeds limit * max(spread, 1e-6). By hand: scores that add the sample's place in its group (0, 1) differ by 1
    when two siblings change places.
    """
    groups = [group for group in groups if group]
    together = score(groups)
    flat = [x for reads in together for read in reads for x in read]
    shuffled = random.Random(seed)
    orders = [
        [list(reversed(range(len(g)))) for g in groups],
        [shuffled.sample(range(len(g)), len(g)) for g in groups],
    ]
    order = max((_worst(together, _in_order(score, groups, new)) for new in orders), default=0.0)
    mates = _worst(together, [reads for group in groups for reads in score([group])])
    siblings = _worst(together, [reads for group in groups for s in group for reads in score([[s]])])
    mean = sum(flat) / max(1, len(flat))
    spread = (sum((x - mean) ** 2 for x in flat) / max(1, len(flat))) ** 0.5
    return {
        "samples": len(together),
        "order": order,
        "mates": mates,
        "siblings": siblings,
        "spread": spread,
        "limit": limit,
        "ok": max(order, mates, siblings) <= limit * max(spread, 1e-6),
    }


def _in_order(score: Score[S], groups: Sequence[list[S]], orders: Sequence[list[int]]) -> list[list[tuple[float, ...]]]:
    """Scores of the groups with their siblings in another order, put back into the old one."""
    said = iter(score([[g[i] for i in new] for g, new in zip(groups, orders, strict=True)]))
    out: list[list[tuple[float, ...]]] = []
    for new in orders:
        found = {place: next(said) for place in new}
        out.extend(found[place] for place in range(len(new)))
    return out


def _worst(one: Sequence[list[tuple[float, ...]]], other: Sequence[list[tuple[float, ...]]]) -> float:
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        for reads, others in zip(a, b, strict=True):
            gaps = [abs(x - y) for x, y in zip(reads, others, strict=True)]
            worst = max([worst, *(gap if gap == gap else math.inf for gap in gaps)])  # nan compares with nothing
    return worst
