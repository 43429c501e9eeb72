"""Outcomes as JSON."""

from __future__ import annotations

import json

import pytest

from espalier.outcomes import Graded, Outcome, outcome_from_json, outcome_to_json


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(0.0),
        Outcome(0.1 + 0.2, {"exact": Graded(1.0), "length": Graded(-1 / 3, 0.25)}, steps=((3, 0.5), (9, 1 / 7))),
        Outcome(-1.0, invalid="no answer tag"),
        Outcome(0.0, error="math: stopped after 10 s"),
        Outcome(0.5, {"tags": Graded(0.5)}, closed=True),
    ],
)
def test_an_outcome_survives_json_bit_for_bit(outcome: Outcome) -> None:
    assert outcome_from_json(json.loads(json.dumps(outcome_to_json(outcome)))) == outcome


def test_entries_that_are_empty_are_left_out() -> None:
    assert outcome_to_json(Outcome(1.0)) == {"score": 1.0}
    assert outcome_to_json(Outcome(0.0, error="x: y")) == {"score": 0.0, "error": "x: y"}
