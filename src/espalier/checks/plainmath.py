"""What the first step says, as plain numbers, and the arithmetic that first losses share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class PairFacts(NamedTuple):
    """What one comparison says before the first step: summed log-probabilities of the preferred answer w and the other
    one l under policy and reference, and their trained tokens. For `Reward`, logp_w and logp_l are the two total
    scores.

    gap: how far their labels are apart. tied: the two are equal. shared_w, shared_l: log-ratios of the tokens up to the
    shorter answer's length (LD-DPO); None if they are not known.
    """

    logp_w: float
    logp_l: float
    ref_w: float = 0.0
    ref_l: float = 0.0
    len_w: float = 1.0
    len_l: float = 1.0
    gap: float = 0.0
    tied: bool = False
    shared_w: float | None = None
    shared_l: float | None = None


class ReadFacts(NamedTuple):
    """What a scalar head says in each dimension after one token, and what it should say (nan: not known)."""

    scores: Sequence[float]
    grades: Sequence[float]


class AnswerFacts(NamedTuple):
    """An answer that the policy drew: its tokens, its advantage, and whether any of them has a weight."""

    tokens: int
    advantage: float
    kept: bool


Order = Sequence[tuple[float, float | None]]
"""The strength and the label of every answer of a group; higher labels are better, None is not ranked."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the first loss of some groups follows from: see `firstloss.expected_first_loss`."""

    pairs: Sequence[PairFacts] = ()
    groups: Sequence[int] | None = None
    orders: Sequence[Order] | None = None
    chosen: Sequence[tuple[float, float]] | None = None
    reads: Sequence[ReadFacts] = ()
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    moving: float = 0.0


class Expected(NamedTuple):
    """A term's value, divided by its total, and its coefficient in the loss."""

    value: float
    coef: float


def softplus(x: float) -> float:
    """log(1 + exp(x)), which is -log sigma(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigma(x: float) -> float:
    return math.exp(-softplus(-x))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def ordered(order: Order) -> float:
    """-log of the probability of an order under Plackett-Luce: the product, over its levels from the worst up, of the
    chance that the answers of a level come before all lower ones; among equals every order is as good as another, so
    their mean is taken.

    Strengths ln 3, ln 2, 0 in this order have the probability 3/6 * 2/3 = 1/3:

    >>> round(math.exp(ordered([(math.log(3), 9.0), (math.log(2), 5.0), (0.0, 4.0)])), 6)
    3.0
    """
    levels: list[tuple[float, list[float]]] = []
    for label, strength in sorted((label, strength) for strength, label in order if label is not None):
        if levels and abs(label - levels[-1][0]) <= 1e-6 * max(1.0, abs(label)):
            levels[-1][1].append(strength)
        else:
            levels.append((label, [strength]))
    most = max((strength for strength, label in order if label is not None), default=0.0)
    cost, lower = 0.0, list[float]()
    for _, level in levels:
        equal = [strength - most for strength in level]  # only differences count, and exp of these is finite
        cost += math.lgamma(len(equal) + 1)
        if lower and len(equal) > 4:  # pairs stand for the orders of a large tie
            for above in equal:
                cost += mean([softplus(below - above) for below in lower])
        elif lower:
            cost -= math.log(_chance(equal, sum(map(math.exp, lower))))
        lower += equal
    return cost


def _chance(equal: Sequence[float], rest: float) -> float:
    """The chance that all of `equal` come, in any order, before what weighs `rest` together."""
    if not equal:
        return 1.0
    weights = [math.exp(x) for x in equal]
    total = rest + sum(weights)
    chance = 0.0
    for i, weight in enumerate(weights):
        chance += weight / total * _chance([*equal[:i], *equal[i + 1 :]], rest)
    return chance
