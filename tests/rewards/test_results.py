"""What a reward may return, and what it must not."""

from __future__ import annotations

import doctest
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from espalier.rewards import results
from espalier.rewards.results import Result, read, read_scored


def test_worked_examples() -> None:
    assert doctest.testmod(results) == (0, 1)


@pytest.mark.parametrize(
    ("value", "scores"),
    [
        (0.5, {"": 0.5}),
        (-2, {"": -2.0}),
        (True, {"": 1.0}),
        (None, {}),
        (np.float32(0.25), {"": 0.25}),
        (np.array([3]), {"": 3.0}),
        (torch.tensor(0.75), {"": 0.75}),
        ({"format": 1, "style": 0.5}, {"format": 1.0, "style": 0.5}),
        ({"score": 2, "style": None}, {"": 2.0}),
        ({"score": None}, {}),
    ],
)
def test_scores(value: Any, scores: dict[str, float]) -> None:
    assert read(value) == Result(scores)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.0", "returned str '1.0'; expected a number"),
        ([1.0], r"returned list \[1.0\]; expected a number"),
        (np.array([1.0, 2.0]), "expected one number"),
        (math.nan, "returned nan; expected a finite number"),
        (-math.inf, "returned -inf; expected a finite number"),
        (10**400, "no float holds"),
        ({}, "an empty mapping"),
        ({"style": "good"}, "style is str 'good'; expected a number"),
        ({3: 1.0}, "the name int 3; expected texts"),
        ({"invalid": 3}, "invalid is int 3; expected the reason"),
        ({"steps": []}, "steps is list"),
        ({"steps": [(3, 1.0, 2)]}, "a step is tuple"),
        ({"steps": [(3, 1.0), (3, 0.0)]}, "expected whole numbers above 0 that grow"),
        ({"steps": [(0, 1.0)]}, "ends at int 0"),
        ({"steps": [(2.5, 1.0)]}, "ends at float 2.5"),
    ],
)
def test_everything_else_is_an_error(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        read(value)


def test_an_answer_that_does_not_qualify_has_no_score() -> None:
    assert read({"invalid": "no tags", "score": 3.0}) == Result(invalid="no tags")
    assert read({"invalid": "", "score": 3.0}) == Result({"": 3.0})


def test_steps_alone_show_their_mean_and_do_not_count_twice() -> None:
    steps = ((4, 1.0), (9, 0.0), (12, 0.5))
    assert read({"steps": list(steps)}) == Result({}, {"": 0.5}, steps=steps)
    assert read({"steps": [[4, 1]], "score": 0}) == Result({"": 0.0}, steps=((4, 1.0),))


def test_of_a_dict_in_verls_form_the_score_counts() -> None:
    result = read_scored({"score": 1.0, "acc": True, "pred": "42", "length": 7})
    assert result == Result({"": 1.0}, {"acc": 1.0, "length": 7.0})
    assert read_scored(0.5) == Result({"": 0.5})
    with pytest.raises(ValueError, match="without score; it has acc"):
        read_scored({"acc": 1.0})


def test_a_result_survives_json() -> None:
    for result in (
        Result(),
        Result({"": 0.1 + 0.2, "a": -1 / 3}, {"b": 1.0}, steps=((3, 1 / 7),)),
        Result(invalid="x"),
        Result(error="y"),
    ):
        assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
