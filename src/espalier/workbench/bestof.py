"""What is gained by drawing n answers and keeping the one that the model scores highest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb
from typing import Any, NamedTuple

from espalier.workbench.bootstrap import Resampling, mean
from espalier.workbench.records import HeldOutGroup


def best_of(scores: Sequence[float], good: Sequence[bool], n: int) -> float:
    """Expected correctness of the highest-scored of n of the K answers, exactly: the mean over all C(K, n) subsets.

    With the answers in descending order of score, the one at place r (from 0) is the best of a subset iff it is in it
    and the n - 1 others stand behind it: C(K - 1 - r, n - 1) of C(K, n) subsets. Among equal scores the choice is even,
    so their places are averaged.

    By hand: scores 3, 2, 1, only the second is correct, n = 2: the subsets {3, 2}, {3, 1}, {2, 1} pick 3, 3, 2: 1/3.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    total, place = 0.0, 0
    while place < len(order):
        equal = [i for i in order[place:] if scores[i] == scores[order[place]]]
        after = place + len(equal)
        subsets = sum(comb(len(order) - 1 - r, n - 1) for r in range(place, after))
        total += subsets * sum(good[i] for i in equal) / len(equal)
        place = after
    return total / comb(len(order), n)


def any_of(good: Sequence[bool], n: int) -> float:
    """Chance that n of the K answers include a correct one: 1 - C(K - g, n) / C(K, n) with g correct ones. By hand: one
    correct of three, n = 2: 1 - 1/3 = 2/3. Chen et al., arXiv:2107.03374, eq. 1 (pass@k)."""
    return 1 - comb(len(good) - sum(good), n) / comb(len(good), n)


def largest_n(sizes: Iterable[int]) -> int:
    """How far a curve over n runs: up to the number of answers that nine tenths of the prompts have.

    A curve whose prompts change along the way misleads, so all its points are of the prompts that have so many; the
    others are left out.
    """
    in_order = sorted(sizes)
    return in_order[len(in_order) // 10]


class _Known(NamedTuple):
    """A group whose answers are all known to be correct or not."""

    number: int
    scores: list[float]
    good: list[bool]


def best_of_n(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any] | None:
    """The curve over n of the model's choice, of a random choice (the same for each n) and of an oracle; each the mean
    over groups whose answers are all known to be correct or not. None without such groups.

    n runs up to `largest_n`; `left_out` counts the groups with fewer answers.
    """
    known = _known(groups)
    if not known:
        return None
    most = largest_n(len(group.good) for group in known)
    kept = [group for group in known if len(group.good) >= most]
    kept_prompts = [prompts[group.number] for group in kept]
    points = []
    for n in range(1, most + 1):
        by_model = [best_of(group.scores, group.good, n) for group in kept]
        points.append(
            {
                "n": n,
                "model": mean(by_model, kept_prompts, resampling, share=True),
                "random": sum(sum(group.good) / len(group.good) for group in kept) / len(kept),
                "oracle": sum(any_of(group.good, n) for group in kept) / len(kept),
            }
        )
    return {"groups": len(kept), "left_out": len(known) - len(kept), "points": points}


def _known(groups: Sequence[HeldOutGroup]) -> list[_Known]:
    """Groups of two or more answers that are all known to be correct or not."""
    known = []
    for number, group in enumerate(groups):
        good = [bool(response.good) for response in group.responses if response.good is not None]
        if len(group.responses) > 1 and len(good) == len(group.responses):
            known.append(_Known(number, [response.score for response in group.responses], good))
    return known
