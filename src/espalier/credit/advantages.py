"""Advantages: what each answer scored, measured against its siblings. Plain floats, one list a group.

Scores that are exactly equal give advantages of exactly 0, never what rounding leaves of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from espalier.outcomes import Graded
from espalier.ties import ROUNDING

SMALL = 1e-4
"""Added to standard deviations before they divide (DeepSeekMath's released code, TRL)."""
Steps = Sequence[tuple[int, float]]
"""Steps of one answer: the place of the last token, a score."""
Rewards = Mapping[str, tuple[float, Sequence[float]]]
"""Rewards of one group by name: a weight, a score for each answer."""


def mean(values: Sequence[float]) -> float:
    """Their mean; 0 of none."""
    return math.fsum(values) / len(values) if values else 0.0


def equal(values: Sequence[float]) -> bool:
    """Whether all are exactly equal (also of none and of one)."""
    return len(set(values)) <= 1


def deviation(values: Sequence[float]) -> float:
    """Their standard deviation over n - 1; 0 if all are equal.

    >>> deviation([1.0, 0.0, 0.0, 1.0])
    0.5773502691896257
    """
    if equal(values):
        return 0.0
    center = mean(values)
    return math.sqrt(math.fsum((x - center) ** 2 for x in values) / (len(values) - 1))


def centred(scores: Sequence[float]) -> list[float]:
    """A = r - mean r; arXiv:2503.20783.

    The mean contains the answer itself, which scales the gradient of the expected score by (G - 1) / G.

    >>> centred([1.0, 0.0, 0.0, 1.0])
    [0.5, -0.5, -0.5, 0.5]
    """
    center = mean(scores)
    return [0.0 if equal(scores) else r - center for r in scores]


def normalised(scores: Sequence[float]) -> list[float]:
    """A = (r - mean r) / (std r + 1e-4), std over G - 1; DeepSeekMath, arXiv:2402.03300, section 4.1.2.

    >>> [round(A, 4) for A in normalised([1.0, 0.0, 0.0, 1.0])]
    [0.8659, -0.8659, -0.8659, 0.8659]
    """
    spread = deviation(scores) + SMALL
    return [A / spread for A in centred(scores)]


def over_batch(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """A = (r - mean of its group) / (std of all scores of the step + 1e-4); arXiv:2508.08221.

    Groups [1, 0] and [1, 1] have the std 0.5 together: A is 0.9998, -0.9998 and 0, 0.
    """
    spread = deviation([r for scores in groups for r in scores]) + SMALL
    return [[A / spread for A in centred(scores)] for scores in groups]


def leave_one_out(scores: Sequence[float]) -> list[float]:
    """A = r - mean of the others; RLOO, arXiv:2402.14740, section 3.4 (Kool et al. 2019). 0 for an answer alone.

    It is G / (G - 1) times `centred`: the baseline does not contain the answer, so nothing is scaled.

    >>> leave_one_out([1.0, 0.0, 0.0, 0.0])
    [1.0, -0.3333333333333333, -0.3333333333333333, -0.3333333333333333]
    """
    count = len(scores)
    return [A * count / (count - 1) if count > 1 else 0.0 for A in centred(scores)]


def signs(scores: Sequence[float]) -> list[float]:
    """A = sign(r - mean r); 0 within rounding of the mean.

    >>> signs([3.0, 1.0, 2.0])
    [1.0, -1.0, 0.0]
    """
    near = ROUNDING * max(1.0, abs(mean(scores)))
    return [0.0 if abs(A) <= near else math.copysign(1.0, A) for A in centred(scores)]


def winners(scores: Sequence[float]) -> list[float]:
    """A = +1 for the best, -1 for the rest; 0 if all are equal. Several best ones all win.

    >>> winners([2.0, 1.0, 2.0]), winners([1.0, 1.0])
    ([1.0, -1.0, 1.0], [0.0, 0.0])
    """
    if equal(scores):
        return [0.0 for _ in scores]
    best = max(scores)
    return [1.0 if r == best else -1.0 for r in scores]


def part_scores(parts: Sequence[Mapping[str, Graded]], scores: Sequence[float]) -> dict[str, tuple[float, list[float]]]:
    """The weight of each reward of a group, and what it gives each answer; those that weigh nothing are left out. An
    answer that has no such part (one that does not qualify) has its whole score there."""
    names = {name: graded.weight for part in parts for name, graded in part.items() if graded.weight}
    return {
        name: (weight, [part[name].score if name in part else r for part, r in zip(parts, scores, strict=True)])
        for name, weight in sorted(names.items())
    }


def each_reward(groups: Sequence[Rewards], sizes: Sequence[int]) -> list[list[float]]:
    """Each reward normalised in its group before the sum, and the sum scaled over the step (GDPO, arXiv:2601.05242):

        B = sum_k weight_k normalised(r_k)          A = B / (std of all B of the step + 1e-4)

    `groups` are from `part_scores`, `sizes` their answers. The mean of B is 0 in every group, so none is subtracted.
    """
    sums = []
    for rewards, size in zip(groups, sizes, strict=True):
        total = [0.0] * size
        for weight, scores in rewards.values():
            total = [B + weight * A for B, A in zip(total, normalised(scores), strict=True)]
        sums.append(total)
    spread = deviation([B for total in sums for B in total]) + SMALL
    return [[B / spread for B in total] for total in sums]


def of_steps(steps: Sequence[Steps], lengths: Sequence[int], *, scale: bool = True) -> list[list[float]]:
    """Process rewards: one advantage for each token of each answer of a group; arXiv:2402.03300, section 4.1.3.

        A_t = sum over steps of the answer that end at or after t of (score - mean) / (std + 1e-4)

    Mean and std (over n - 1) are over all steps of all answers of the group; without `scale` nothing divides. `lengths`
    are the answers' tokens. A place beyond the end is the last token.

    Steps that end at 1 and 3 with scores 1 and 0, of an answer alone, give -0.5 at the tokens 2 and 3, 0 at 0 and 1:

    >>> of_steps([[(1, 1.0), (3, 0.0)]], [4], scale=False)
    [[0.0, 0.0, -0.5, -0.5]]
    """
    scores = [score for answer in steps for _, score in answer]
    fresh = iter(normalised(scores) if scale else centred(scores))
    out = []
    for answer, length in zip(steps, lengths, strict=True):
        at = [0.0] * length
        for place, _ in answer:
            value = next(fresh)
            if length:
                at[min(place, length - 1)] += value
        total = 0.0
        for t in reversed(range(length)):
            total += at[t]
            at[t] = total
        out.append(at)
    return out
