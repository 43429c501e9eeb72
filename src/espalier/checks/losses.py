"""The check of the first loss: on the run's own first groups, by arithmetic that shares no code with the losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from espalier.checks.first_groups import facts_of_parts, within
from espalier.checks.firstloss import Facts, expected_first_loss
from espalier.checks.invented import cases
from espalier.checks.table import Outcome, failed, passed, skipped

if TYPE_CHECKING:
    from espalier.checks.evidence import Evidence, First
    from espalier.engines.protocols import Measured

TOLERANCE = {"float64": 1e-8, "float32": 2e-4, "bfloat16": 0.05, "float16": 0.05}
"""What rounding explains of the first loss, by dtype, relative above 1."""
SMOOTH = ("logprobs", "rewards", "length")
"""Metrics that differ between groups and do not jump: an accuracy does where both sides are equal."""
EVALUATED = 512
"""Tokens of the groups that are evaluated, beside the first two."""
INVENTED = 1e-4
"""What rounding explains of a loss at invented numbers, which are float32 in every run, relative above 1."""
EXPLAINED = (
    "The loss is not that of these groups: reference and policy disagree, chosen and rejected are swapped, or tokens "
    "and weights are counted wrongly. Look at the rows with `espalier inspect`."
)


def check_first_loss(evidence: Evidence) -> Outcome:
    """The loss of some of the first step against what arithmetic gives: as the model says it, and at invented
    numbers."""
    session, first = evidence.session, evidence.first
    algorithm, name = session.config.algorithm, session.config.command
    if first is None:
        what = "label" if session.traits.wants == "labels" else "pair"
        return skipped(f"no {what} in the first step")
    tolerance = TOLERANCE[str(session.model.compute).removeprefix("torch.")]
    if session.traits.likelihood:
        if not evidence.knows_alone:
            return skipped("`layout` was left out, and the model is sharded now")
        facts = facts_of_parts(first.groups, evidence.alone.tolist())
        return first_loss(measured(evidence, first), expect(evidence, facts), tolerance, name)
    outcome = first_loss(measured(evidence, first), expect(evidence, first.facts), tolerance, name)
    for case in cases(algorithm, first.groups, session.model.policy.shares):
        if outcome.verdict == "fail":
            return outcome
        other = first_loss(case.value, case.expected, INVENTED, f"{name} at {case.about}")
        if other.verdict == "fail":
            return other
    return outcome


def check_evaluation(evidence: Evidence) -> Outcome:
    """What an evaluation of some of the first step says, in two batches, against their loss."""
    from espalier.loop.evaluate import evaluate, evaluate_loss

    session, first = evidence.session, evidence.first
    if first is None or len(first.groups) < 2:
        return skipped("fewer than two groups to evaluate")
    tolerance = TOLERANCE[str(session.model.compute).removeprefix("torch.")]
    if not session.traits.likelihood:
        algorithm = session.config.algorithm
        groups = [*first.groups[:2], *within(first.groups[2:], EVALUATED)]
        batches = iter([groups[:1], groups[1:]])
        numbers = evaluate_loss(session.roles, algorithm, first.state, batches)
        terms = session.learner.measure(groups, algorithm.loss, first.state)
        expected = {"eval_loss": _loss_of(terms)}
        for name, term in terms.items():
            if term.total and name.startswith(SMOOTH):
                expected[f"eval_{name}"] = term.sum / term.total
        return evaluation(numbers, expected, tolerance)
    if not evidence.knows_alone:
        return skipped("`layout` was left out, and the model is sharded now")
    parts = facts_of_parts(first.groups, evidence.alone.tolist()).parts.values()
    loss = sum(cost for cost, _ in parts) / sum(weight for _, weight in parts)
    numbers = evaluate(session.learner, iter([first.groups[:1], first.groups[1:]]))
    return evaluation(numbers, {"eval_loss": loss}, tolerance)


def evaluation(numbers: Mapping[str, float], expected: Mapping[str, float], tolerance: float) -> Outcome:
    """The numbers that an evaluation in two batches gives, against those of all of them; the loss is among both."""
    limit = f"the numbers of one batch ± {tolerance:.0e}"
    for name, of_all in expected.items():
        value = numbers.get(name, math.nan)
        if not abs(value - of_all) <= tolerance * max(1.0, abs(of_all)):
            way_out = "Held-out numbers are not those of the held-out data: report this."
            return failed(f"{name} {value:.6f}, of one batch {of_all:.6f}", limit, way_out)
    return passed(f"eval_loss {numbers['eval_loss']:.6f}", limit)


def measured(evidence: Evidence, first: First) -> float:
    """The loss of some groups as the learner measures it, without an update."""
    loss = evidence.session.config.algorithm.loss
    return _loss_of(evidence.session.learner.measure(first.groups, loss, first.state))


def _loss_of(terms: Mapping[str, Measured]) -> float:
    """sum coef sum / total of the terms that have a total."""
    return math.fsum(term.coef * term.sum / term.total for term in terms.values() if term.coef and term.total)


def expect(evidence: Evidence, facts: Facts) -> float | None:
    """What arithmetic says of the loss; None if it does not know, or if numbers are not finite, which `loss` says."""
    try:
        return expected_first_loss(
            evidence.session.config.algorithm,
            facts.pairs,
            groups=facts.groups,
            orders=facts.orders,
            chosen=facts.chosen,
            reads=facts.reads,
            parts=facts.parts,
            moving=facts.moving,
        )
    except (OverflowError, ValueError):
        return None


def first_loss(value: float, expected: float | None, tolerance: float, name: str) -> Outcome:
    """The first step's loss, or another number of it such as its margin, against what it must be.

    expected: from `firstloss.expected_first_loss`; None skips the check. tolerance: the difference that rounding
    explains, relative if the loss is above 1.
    """
    shown = f"{name} {value:.6f}"
    if expected is None:
        return skipped(shown, "follows from more than these groups")
    tolerance *= max(1.0, abs(expected))
    limit = f"{expected:.6f} ± {tolerance:.0e}"
    if abs(value - expected) <= tolerance:  # false for nan
        return passed(shown, limit)
    return failed(shown, limit, EXPLAINED)
