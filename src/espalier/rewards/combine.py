"""From the results of all rewards of one response to its outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from espalier.outcomes import Graded, Outcome
from espalier.rewards.results import OWN, Result

FULL = 1.0
"""Full marks at a gate that declares no best score."""


@dataclass(frozen=True, slots=True)
class Component:
    """One reward's part in the score: its weight, the best score it declares, and whether it gates those after it."""

    name: str
    weight: float = 1.0
    best: float | None = None
    gate: bool = False


def combine(
    components: Sequence[Component],
    results: Mapping[str, Result],
    invalid_score: float = 0.0,
    place: Callable[[int], int] | None = None,
    *,
    scored: bool = False,
) -> Outcome:
    """The outcome of one response: score = sum of weight * score over everything that applies.

    components: the rewards that grade the task, in the order of the run's list. results: what each of them returned.
    A reward that names several scores has several parts, NAME.KEY, each with the reward's weight. Behind a gate that
    does not give full marks (its best score, 1 if it declares none; all of its scores, if it names several) scores,
    steps and `invalid` do not count: 0, with what the reward gave as `raw`. A gate that does not apply is open; an
    answer that does not qualify is invalid, whatever follows.
    One error makes the outcome an error, and so does a task to which nothing applies; otherwise one `invalid` makes it
    invalid, with `invalid_score` and no parts.
    place: the place in the response of the token that covers the end of a step, given in characters; the scores of
    steps are multiplied by the reward's weight. It may raise ValueError, which is an error.
    scored: reward models score the response after that (`beside`), so that no reward need apply.

    >>> combine([Component("math", 2.0), Component("length")], {"math": Result({"": 1.0}), "length": Result()}).score
    2.0
    """
    parts: dict[str, Graded] = {}
    steps: list[tuple[int, float]] = []
    error = invalid = ""
    applies = False
    is_open = True
    for component in components:
        result = results[component.name]
        if result.error:
            error = error or f"{component.name}: {result.error}"
            continue
        if result.invalid:
            if is_open:
                invalid = invalid or f"{component.name}: {result.invalid}"
            continue
        applies = applies or bool(result.scores or result.steps)
        for key, score in result.scores.items():
            graded = Graded(score, component.weight) if is_open else Graded(0.0, component.weight, raw=score)
            parts[_name(component, key)] = graded
        for key, score in result.shown.items():
            parts[_name(component, key)] = Graded(score, 0.0)
        if result.steps:
            try:
                steps += _placed(result, component.weight if is_open else 0.0, place)
            except ValueError as caught:
                error = error or f"{component.name}: {caught}"
        marks = result.scores or result.shown
        if component.gate and any(score < full_marks(component) for score in marks.values()):
            is_open = False
    if error:
        return Outcome(0.0, parts, error=error)
    if invalid:
        # Whatever else speaks for the answer, it has the stated score and no other.
        return Outcome(invalid_score, invalid=invalid)
    if not applies and not scored:
        names = ", ".join(component.name for component in components)
        return Outcome(0.0, parts, error=f"{names or 'no reward'}: does not apply to this task")
    return Outcome(_total(parts), parts, steps=tuple(sorted(steps, key=lambda step: step[0])), closed=not is_open)


def beside(outcome: Outcome, scores: Mapping[str, Graded]) -> Outcome:
    """The outcome of the rules with the scores of reward models, by name, as further parts. One that is an error or
    invalid stays as it is. Behind a gate that did not open the scores count 0. A score that is not finite is an error.

    >>> beside(Outcome(1.0, {"math": Graded(1.0)}), {"helpful": Graded(0.5, 2.0)}).score
    2.0
    """
    if outcome.error or outcome.invalid:
        return outcome
    parts = dict(outcome.parts)
    for name, graded in scores.items():
        if not math.isfinite(graded.score):
            return Outcome(0.0, outcome.parts, error=f"{name}: its score is {graded.score}, not a finite number")
        parts[name] = Graded(0.0, graded.weight, raw=graded.score) if outcome.closed else graded
    return replace(outcome, score=_total(parts), parts=parts)


def _total(parts: Mapping[str, Graded]) -> float:
    return sum(part.weight * part.score for part in parts.values())


def full_marks(component: Component) -> float:
    """The score at which a gate opens."""
    return FULL if component.best is None else component.best


def best_score(components: Sequence[Component]) -> float | None:
    """The highest score of the rewards together; None if one declares no best, or has a negative weight."""
    if not components or any(component.best is None or component.weight < 0 for component in components):
        return None
    return sum(component.weight * (component.best or 0.0) for component in components)


def _name(component: Component, key: str) -> str:
    return component.name if key == OWN else f"{component.name}.{key}"


def _placed(result: Result, weight: float, place: Callable[[int], int] | None) -> list[tuple[int, float]]:
    if place is None:
        raise ValueError("gives scores of steps, for which the response's tokens are needed; this is text alone")
    return [(place(end), weight * score) for end, score in result.steps]
