"""Tasks with several accepted answers: each of them is right, for every built-in reward that reads answers."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.checks import rewards
from espalier.config.rollout_sections import RewardsConfig
from espalier.rewards.build import plan
from espalier.rewards.builtin import BUILTIN
from espalier.rewards.reward import Answer
from espalier.types import Message, Origin, Task

SEVEN = {"answers": ["seven", "7", "8"]}
CITIES = {"answers": ["A", "Paris"], "choices": ["Rome", "Paris", "Bern"]}


@pytest.mark.parametrize(
    ("name", "facts", "responses"),
    [
        ("exact", SEVEN, {"seven": 1.0, "7": 1.0, "8": 1.0, "9": 0.0}),
        ("numeric", SEVEN, {"It is 7.": 1.0, "It is 8.": 1.0, "It is 9.": 0.0, "seven": "invalid"}),
        ("gsm8k", SEVEN, {"#### 8": 1.0, "#### 9": 0.0, "7": "invalid"}),
        ("choice", CITIES, {"A": 1.0, "(b)": 1.0, "C": 0.0, "E": "invalid"}),
    ],
)
def test_the_best_score_over_the_answers_counts(name: str, facts: dict[str, Any], responses: dict[str, Any]) -> None:
    reward = BUILTIN[name]
    settings = reward.with_defaults({})
    for response, score in responses.items():
        given = reward.grade_any(Answer("", response, answer=facts["answers"][0], facts=facts), settings)
        assert ("invalid" if isinstance(given, dict) else given) == score, response


def test_answers_none_of_which_can_be_read_are_an_error() -> None:
    numeric = BUILTIN["numeric"]
    with pytest.raises(ValueError, match="'one' holds 0 numbers"):
        numeric.grade_any(Answer("", "1", answer="one", facts={"answers": ["one", "uno"]}), numeric.with_defaults({}))
    with pytest.raises(ValueError, match="'one' holds 0 numbers"):
        numeric.write_gold(Task((), answer="one", facts={"answers": ["one", "uno"]}))
    # A fact of another form is none of the reward's business.
    other = Answer("", "1", answer="1", facts={"answers": {"text": ["2"]}})
    assert numeric.grade_any(other, numeric.with_defaults({})) == 1.0


def test_graders_and_the_check_of_golds_take_each_of_them() -> None:
    """`seven` has no form for numeric; the 7 behind it has."""
    task = Task((Message("user", "3 + 4?"),), answer="seven", facts=SEVEN, origin=Origin("sums", 1))
    graders = plan(RewardsConfig(reward=("numeric",), reward_workers=1)).start(lambda ids: "")
    try:
        scores = [outcome.score for outcome in graders.grade([(task, "It is 8."), (task, "It is 9.")])]
        golds = rewards.check_golds(graders, [task])
    finally:
        graders.close()
    assert scores == [1.0, 0.0]
    assert (golds.verdict, golds.value) == ("pass", "numeric 1 of 1")
