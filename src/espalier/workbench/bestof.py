"""What it gains to draw n answers and keep the one that the model scores highest."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

from espalier.workbench.bootstrap import Resampling, ratio
from espalier.workbench.records import Judged


def best_of(scores: Sequence[float], good: Sequence[bool], n: int) -> float:
    """Expected correctness of the highest-scored of n of the K answers, exactly: the mean over all C(K, n) subsets.

    With the answers in descending order of score, the one at place r (from 0) is the best of a subset iff it is in it
    and the n - 1 others stand behind it: C(K - 1 - r, n - 1) of C(K, n) subsets. Among equal scores the choice is even,
    so their places are averaged.

    By hand: scores 3, 2, 1, only the second is correct, n = 2: the subsets {3, 2}, {3, 1}, {2, 1} pick 3, 3, 2: 1/3.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    total, r = 0.0, 0
    while r < len(order):
        same = [i for i in order[r:] if scores[i] == scores[order[r]]]
        ways = sum(comb(len(order) - 1 - place, n - 1) for place in range(r, r + len(same)))
        total += ways * sum(good[i] for i in same) / len(same)
        r += len(same)
    return total / comb(len(order), n)


def any_of(good: Sequence[bool], n: int) -> float:
    """Chance that n of the K answers hold a correct one: 1 - C(K - g, n) / C(K, n) with g correct ones. By hand: one
    correct of three, n = 2: 1 - 1/3 = 2/3. Chen et al., arXiv:2107.03374, eq. 1 (pass@k)."""
    return 1 - comb(len(good) - sum(good), n) / comb(len(good), n)


def best_of_n(records: Sequence[Judged], cluster: Sequence[int], how: Resampling) -> dict[str, Any] | None:
    """The curve over n of the model's choice, of a random one (n makes no difference to it) and of an oracle; each the
    mean over prompts whose answers are all known to be correct or not. None without such groups.

    A curve whose prompts change along the way misleads, so n runs up to what nine tenths of the groups have, and the
    others are left out (`left_out`).
    """
    known = [
        (number, [r.score for r in g.responses], [bool(r.good) for r in g.responses])
        for number, g in enumerate(records)
        if len(g.responses) > 1 and all(r.good is not None for r in g.responses)
    ]
    if not known:
        return None
    sizes = sorted(len(good) for _, _, good in known)
    most = sizes[len(sizes) // 10]
    kept = [entry for entry in known if len(entry[2]) >= most]
    where = [cluster[number] for number, _, _ in kept]
    ones = [1.0] * len(kept)
    points = []
    for n in range(1, most + 1):
        by_model = [best_of(scores, good, n) for _, scores, good in kept]
        points.append(
            {
                "n": n,
                "model": ratio(by_model, ones, where, how, share=True).as_dict(),
                "random": sum(sum(good) / len(good) for _, _, good in kept) / len(kept),
                "oracle": sum(any_of(good, n) for _, _, good in kept) / len(kept),
            }
        )
    return {"groups": len(kept), "left_out": len(known) - len(kept), "points": points}
