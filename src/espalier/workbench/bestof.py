"""What is gained by drawing n answers and keeping the one that the model scores highest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb
from typing import Any

from espalier.workbench.bootstrap import Resampling, mean
from espalier.workbench.records import HeldOutGroup


def best_of(scores: Sequence[float], good: Sequence[float], n: int) -> float:
    """Expected correctness (or whatever `good` measures) of the highest-scored of n of the K answers, exactly: the mean
    over all C(K, n) subsets.

    With the answers in descending order of score, the one at place r (from 0) is the best of a subset iff it is in it
    and the n - 1 others stand behind it: C(K - 1 - r, n - 1) of C(K, n) subsets. Among equal scores the choice is even,
    so their places are averaged.

    By hand: scores 3, 2, 1, only the second is correct, n = 2: the subsets {3, 2}, {3, 1}, {2, 1} pick 3, 3, 2: 1/3.
    """
    order = sorted(range(len(scores)), key=lambda answer: -scores[answer])
    total, place = 0.0, 0
    while place < len(order):
        subsets, correct, first = 0, 0.0, place
        while place < len(order) and scores[order[place]] == scores[order[first]]:
            subsets += comb(len(order) - 1 - place, n - 1)
            correct += float(good[order[place]])
            place += 1
        total += subsets * correct / (place - first)
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


def random_choice(good: Sequence[Sequence[bool]]) -> float:
    """Expected correctness of an answer drawn at random, the mean over prompts; `good` has the answers of each."""
    return sum(sum(answers) / len(answers) for answers in good) / len(good)


def oracle(good: Sequence[Sequence[bool]], n: int) -> float:
    """The share of prompts of which n drawn answers include a correct one: the best that any choice can reach."""
    return sum(any_of(answers, n) for answers in good) / len(good)


def best_of_n(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any] | None:
    """The curve over n of the model's choice, of a random choice (the same for each n) and of an oracle; each the mean
    over groups whose answers are all known to be correct or not. None without such groups.

    n runs up to `largest_n`; `left_out` counts the groups with fewer answers.
    """
    known = []
    for number, group in enumerate(groups):
        if len(group.responses) > 1 and all(response.good is not None for response in group.responses):
            known.append(number)
    if not known:
        return None
    most = largest_n(len(groups[number].responses) for number in known)
    scores, good, of_prompts = [], [], []
    for number in known:
        responses = groups[number].responses
        if len(responses) >= most:
            scores.append(groups[number].scores)
            good.append([bool(response.good) for response in responses])
            of_prompts.append(prompts[number])
    points = []
    for n in range(1, most + 1):
        by_model = [best_of(*answers, n) for answers in zip(scores, good, strict=True)]
        model = mean(by_model, of_prompts, resampling, share=True)
        limits = {"random": random_choice(good), "oracle": oracle(good, n)}
        points.append({"n": n, "model": model, **limits})
    return {"groups": len(good), "left_out": len(known) - len(good), "points": points}
