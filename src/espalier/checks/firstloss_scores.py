"""First losses of reward models, by arithmetic on plain floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from espalier.checks.plainmath import Expected, Facts, PairFacts, mean, ordered, softplus


def reward(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """The objective over groups (each the mean of its comparisons) or over pairs, grades, and the pull to a mean of
    0."""
    terms: dict[str, Expected] = {}
    if algorithm.objective == "pointwise" or algorithm.pointwise_coef:
        terms["pointwise"] = Expected(_pointwise(algorithm, facts), algorithm.pointwise_coef or 1.0)
    if algorithm.objective == "pointwise":
        return terms
    compared = [i for i, p in enumerate(facts.pairs) if algorithm.ties != "none" or not p.tied]
    pairs = [facts.pairs[i] for i in compared]
    group_of = compared if facts.groups is None else [facts.groups[i] for i in compared]
    if algorithm.weighting == "pairs":
        group_of = list(range(len(pairs)))
    if algorithm.objective == "plackett_luce":
        orders = facts.orders
        if orders is None:
            orders = [[(p.logp_w, 1.0), (p.logp_l, 0.0)] for p in pairs]
        terms["plackett_luce"] = Expected(mean([ordered(order) for order in orders]), 1.0)
    else:
        terms["bradley_terry"] = Expected(_over([_comparison(algorithm, p) for p in pairs], group_of), 1.0)
    if algorithm.centering:
        pulls = [(p.logp_w + p.logp_l) ** 2 for p in pairs]
        terms["centering"] = Expected(_over(pulls, group_of), algorithm.centering)
    return terms


def _over(values: Sequence[float], group_of: Sequence[int]) -> float:
    """The mean over groups of the mean inside a group."""
    by_group: dict[int, list[float]] = {}
    for value, group in zip(values, group_of, strict=True):
        by_group.setdefault(group, []).append(value)
    return mean([mean(inside) for inside in by_group.values()])


def _comparison(algorithm: Any, p: PairFacts) -> float:
    """-log of the probability of one comparison: a win, or a tie under a model of ties."""
    d, e, margin = p.logp_w - p.logp_l, float(algorithm.label_smoothing), float(algorithm.margin)
    if algorithm.ties == "none":
        lead = d - margin * p.gap
        return (1 - e) * softplus(-lead) + e * softplus(lead)
    share = float(algorithm.tie_share)
    if algorithm.ties == "davidson":
        win, loss, tie = math.exp(d / 2), math.exp(-d / 2), 2 * share / (1 - share)
        return -math.log((tie if p.tied else win) / (win + loss + tie))
    theta = (1 + share) / (1 - share)
    win = 1 / (1 + theta * math.exp(-d))
    loss = 1 / (1 + theta * math.exp(d))
    return -math.log(1 - win - loss if p.tied else win)


def _pointwise(algorithm: Any, facts: Facts) -> float:
    """Mean over answers with a grade of the mean, over their known dimensions, of the squared error on the scale from
    -1 to 1."""
    low, high = algorithm.grade_low, algorithm.grade_high
    errors = []
    for read in facts.reads:
        known = []
        for score, grade in zip(read.scores, read.grades, strict=True):
            if not math.isnan(grade):
                known.append((score - (2 * (grade - low) / (high - low) - 1)) ** 2)
        if known:
            errors.append(mean(known))
    return mean(errors)
