"""First losses over single answers and single steps, good or bad, by arithmetic on plain floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from espalier.checks.plainmath import Expected, Facts, PairFacts, mean, sigma, softplus


def kto(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """Mean over answers of lambda (1 - sigma(+-beta (r - z))), z the moving number: at r = z = 0 half of the mean
    weight."""
    terms = []
    for ratio, good in _answers(facts.pairs):
        lead = algorithm.beta * (ratio - facts.moving)
        if good:
            terms.append(algorithm.desirable_weight * (1 - sigma(lead)))
        else:
            terms.append(algorithm.undesirable_weight * sigma(lead))
    return {"kto": Expected(mean(terms), 1.0)}


def bco(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """Mean over answers of the cross-entropy of the logit beta r - delta, delta the moving number: ln 2 at r = delta =
    0."""
    leads = [(algorithm.beta * ratio - facts.moving, good) for ratio, good in _answers(facts.pairs)]
    return {"bco": Expected(mean([softplus(-lead if good else lead) for lead, good in leads]), 1.0)}


def steps(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """Mean over labelled steps of the cross-entropy of "this step is good", bad ones weighed by bad_weight."""
    costs = []
    for (score, *_), (grade, *_) in facts.reads:
        if not math.isnan(grade):
            costs.append(grade * softplus(-score) + algorithm.bad_weight * (1 - grade) * softplus(score))
    return {"cross_entropy": Expected(mean(costs), 1.0)}


def _answers(pairs: Sequence[PairFacts]) -> list[tuple[float, bool]]:
    """Log-ratio of every answer and whether it is good, without the sides of length 0."""
    answers = []
    for p in pairs:
        if p.len_w:
            answers.append((p.logp_w - p.ref_w, True))
        if p.len_l:
            answers.append((p.logp_l - p.ref_l, False))
    return answers
