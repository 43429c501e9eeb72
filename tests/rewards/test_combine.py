"""From results to an outcome, by numbers that can be added in the head."""

from __future__ import annotations

import doctest

import pytest

from espalier.outcomes import Graded, Outcome
from espalier.rewards import combine as module
from espalier.rewards.combine import Component, beside, best_score, combine
from espalier.rewards.results import Result

MATH, TAGS, LENGTH = Component("math", 2.0, 1.0), Component("tags", 0.5, 1.0), Component("length", -0.25)


def of(score: float) -> Result:
    return Result({"": score})


def test_worked_examples() -> None:
    assert doctest.testmod(module) == (0, 2)


def test_scores_are_weighted_and_added() -> None:
    outcome = combine([MATH, TAGS, LENGTH], {"math": of(1.0), "tags": of(0.5), "length": of(2.0)})
    assert outcome.score == 2.0 * 1.0 + 0.5 * 0.5 - 0.25 * 2.0 == 1.75
    assert outcome.parts == {"math": Graded(1.0, 2.0), "tags": Graded(0.5, 0.5), "length": Graded(2.0, -0.25)}


def test_what_does_not_apply_is_left_out() -> None:
    outcome = combine([MATH, TAGS], {"math": Result(), "tags": of(1.0)})
    assert outcome == Outcome(0.5, {"tags": Graded(1.0, 0.5)})


def test_nothing_that_applies_is_an_error() -> None:
    outcome = combine([MATH, TAGS], {"math": Result(), "tags": Result()})
    assert outcome.error == "math, tags: does not apply to this task" and outcome.score == 0.0


def test_several_scores_of_one_reward_have_its_weight_each() -> None:
    outcome = combine([MATH], {"math": Result({"": 1.0, "form": 0.5}, {"acc": 7.0})})
    assert outcome.score == 2.0 * 1.0 + 2.0 * 0.5
    assert outcome.parts == {"math": Graded(1.0, 2.0), "math.form": Graded(0.5, 2.0), "math.acc": Graded(7.0, 0.0)}


def test_one_failed_reward_is_an_error_and_never_a_zero() -> None:
    outcome = combine([MATH, TAGS], {"math": Result(error="no answer within 10 s"), "tags": of(1.0)})
    assert outcome.error == "math: no answer within 10 s" and outcome.parts == {"tags": Graded(1.0, 0.5)}
    both = combine([MATH, TAGS], {"math": Result(invalid="empty"), "tags": Result(error="x")}, -1.0)
    assert both.error == "tags: x" and both.score == 0.0 and both.invalid == ""


def test_an_answer_that_does_not_qualify_gets_the_stated_score() -> None:
    outcome = combine([MATH, TAGS], {"math": Result(invalid="no number"), "tags": of(1.0)}, -1.0)
    assert outcome == Outcome(-1.0, invalid="math: no number")


def test_behind_a_closed_gate_nothing_counts() -> None:
    gate = Component("tags", 0.5, 1.0, gate=True)
    closed = combine([LENGTH, gate, MATH], {"length": of(2.0), "tags": of(0.5), "math": of(1.0)})
    assert closed.score == -0.25 * 2.0 + 0.5 * 0.5
    assert closed.parts["math"] == Graded(0.0, 2.0, raw=1.0) and closed.parts["length"] == Graded(2.0, -0.25)
    opened = combine([LENGTH, gate, MATH], {"length": of(2.0), "tags": of(1.0), "math": of(1.0)})
    assert opened.score == -0.25 * 2.0 + 0.5 * 1.0 + 2.0
    assert opened.parts["math"] == Graded(1.0, 2.0)


@pytest.mark.parametrize(
    ("result", "is_open"), [(of(1.0), True), (Result(), True), (of(0.99), False), (Result({"a": 1.0, "b": 0.0}), False)]
)
def test_full_marks_at_every_score_open_a_gate(result: Result, is_open: bool) -> None:
    gate = Component("user", 0.0, None, gate=True)
    assert combine([gate, MATH], {"user": result, "math": of(1.0)}).score == (2.0 if is_open else 0.0)


def test_behind_a_closed_gate_an_error_is_still_an_error_and_invalid_is_not() -> None:
    gate = Component("tags", 0.5, 1.0, gate=True)
    assert combine([gate, MATH], {"tags": of(0.0), "math": Result(error="x")}).error == "math: x"
    assert combine([gate, MATH], {"tags": of(0.0), "math": Result(invalid="x")}, -1.0).invalid == ""


def test_steps_are_placed_weighted_and_in_order() -> None:
    results = {"math": Result({"": 0.5}, steps=((4, 1.0), (9, 0.0))), "tags": Result({"": 1.0}, steps=((6, 1.0),))}
    outcome = combine([MATH, TAGS], results, place=lambda end: end // 2)
    assert outcome.steps == ((2, 2.0), (3, 0.5), (4, 0.0))
    assert combine([MATH, TAGS], results).error.startswith("math: gives scores of steps")


def test_steps_alone_are_shown_and_not_added() -> None:
    steps = Result({}, {"": 0.5}, steps=((4, 1.0), (9, 0.0)))
    outcome = combine([MATH, TAGS], {"math": steps, "tags": of(1.0)}, place=lambda end: end)
    assert (outcome.score, outcome.steps) == (0.5, ((4, 2.0), (9, 0.0)))
    assert outcome.parts["math"] == Graded(0.5, 0.0)
    assert combine([MATH], {"math": steps}, place=lambda end: end).error == ""


def test_the_best_score_is_known_if_each_reward_declares_one() -> None:
    assert best_score([MATH, TAGS]) == 2.5
    assert best_score([MATH, Component("user")]) is None
    assert best_score([MATH, Component("length", -1.0, 1.0)]) is None
    assert best_score([]) is None


# ------------------------------------------------------------------------------------------------------ reward models


def test_reward_models_are_further_parts_of_the_sum() -> None:
    rules = combine([MATH, TAGS], {"math": of(1.0), "tags": of(0.5)}, scored=True)
    outcome = beside(rules, {"helpful": Graded(0.7, 3.0), "helpful.tone": Graded(9.0, 0.0), "brief": Graded(-1.0)})
    assert outcome.score == pytest.approx(2.0 + 0.25 + 3.0 * 0.7 - 1.0)
    assert list(outcome.parts) == ["math", "tags", "helpful", "helpful.tone", "brief"]
    alone = beside(combine([], {}, scored=True), {"helpful": Graded(0.7, 2.0)})
    assert alone == Outcome(1.4, {"helpful": Graded(0.7, 2.0)})


def test_a_rule_that_does_not_apply_leaves_the_answer_to_the_reward_models() -> None:
    assert combine([MATH], {"math": Result()}, scored=True) == Outcome(0.0)


def test_behind_a_closed_gate_reward_models_count_0() -> None:
    gate = Component("form", 1.0, 1.0, gate=True)
    closed = combine([gate], {"form": of(0.5)}, scored=True)
    assert closed == Outcome(0.5, {"form": Graded(0.5)}, closed=True)
    outcome = beside(closed, {"helpful": Graded(0.7, 3.0)})
    assert outcome.score == 0.5 and outcome.parts["helpful"] == Graded(0.0, 3.0, raw=0.7)
    opened = beside(combine([gate], {"form": of(1.0)}, scored=True), {"helpful": Graded(0.7, 3.0)})
    assert opened.score == pytest.approx(1.0 + 2.1)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error(score: float) -> None:
    outcome = beside(Outcome(1.0, {"math": Graded(1.0)}), {"helpful": Graded(score)})
    assert (outcome.score, outcome.error) == (0.0, f"helpful: its score is {score}, not a finite number")
    assert outcome.parts == {"math": Graded(1.0)}


def test_errors_and_invalid_answers_stay_what_they_are() -> None:
    for outcome in (Outcome(0.0, error="math: late"), Outcome(-1.0, invalid="tags: none")):
        assert beside(outcome, {"helpful": Graded(0.7)}) is outcome
