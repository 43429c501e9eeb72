"""What a reward declares: settings from text, what of a task it needs, which answers it takes."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.checks import rewards
from espalier.config.rollout_sections import RewardsConfig
from espalier.errors import ConfigError
from espalier.rewards.build import plan
from espalier.rewards.builtin import BUILTIN
from espalier.rewards.reward import Answer, Reward, Setting, accepted
from espalier.types import Message, Origin, Task


def reward(**fields: object) -> Reward:
    settings = {
        "target": Setting(200, "characters"),
        "slope": Setting(0.5, "a number"),
        "strict": Setting(False, "true or false"),
        "pattern": Setting("", "a pattern"),
        "form": Setting("text", "a form", choices=("text", "json")),
    }
    return Reward("length", "how long", lambda answer, settings: 1.0, settings=settings, **fields)  # type: ignore[arg-type]


def task(answer: str = "", **facts: object) -> Task:
    return Task((Message("user", "2 + 2?"),), answer=answer, facts=facts)


def test_settings_have_the_type_of_their_default() -> None:
    values = reward().with_defaults({"target": "80", "slope": "2", "strict": "True", "form": "json"})
    assert values == {"target": 80, "slope": 2.0, "strict": True, "pattern": "", "form": "json"}
    assert isinstance(values["slope"], float)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (
            "targt",
            "1",
            "length has no setting targt; it has target, slope, strict, pattern, form. Did you mean target?",
        ),
        ("target", "1.5", "length.target is '1.5'; expected a whole number"),
        ("slope", "steep", "length.slope is 'steep'; expected a number"),
        ("strict", "1", "length.strict is '1'; expected true or false"),
        ("form", "yaml", "length.form is 'yaml'; expected one of text, json"),
    ],
)
def test_a_wrong_setting_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^reward_args: ") as caught:
        reward().with_defaults({key: text})
    assert message in str(caught.value)


def test_settings_that_do_not_go_together_are_refused() -> None:
    def check(settings: object) -> None:
        raise ValueError("strict needs a target")

    with pytest.raises(ConfigError, match="reward_args: length: strict needs a target"):
        reward(check=check).with_defaults({})


def test_a_task_lacks_what_it_does_not_have() -> None:
    answered = reward(needs=("answer",))
    assert answered.lacks(task("4"), {}) == ()
    assert answered.lacks(task(), {}) == ("answer",)
    either = reward(needs=("required|forbidden",))
    assert either.lacks(task(forbidden=["no"]), {}) == ()
    assert either.lacks(task(required=None), {}) == ("required|forbidden",)


def test_a_setting_stands_for_a_fact() -> None:
    regex = reward(needs=("pattern",))
    assert regex.lacks(task(), regex.with_defaults({})) == ("pattern",)
    assert regex.lacks(task(), regex.with_defaults({"pattern": "a+"})) == ()
    assert regex.open_needs(regex.with_defaults({"pattern": "a+"})) == ()


def test_fields_of_an_answer_hide_none_of_its_own() -> None:
    answer = Answer("2 + 2?", "4", answer="4", columns={"level": 3, "row": 9, "tests": 1}, facts={"tests": 2}, row=5)
    fields = answer.fields()
    assert (fields["level"], fields["tests"], fields["row"], fields["answer"]) == (3, 2, 5, "4")


# -------------------------------------------------------------------------------- several accepted answers

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


def test_a_list_without_the_answer_says_something_else() -> None:
    """Options, or parts: only the answer counts. Empty texts of a list that has it would be in every response."""
    assert accepted(Answer("", "", answer="7", facts={"answers": ["a", "b"]})) == ("7",)
    assert accepted(Answer("", "", answer="7", facts={"answers": ["", "7", " ", "seven"]})) == ("7", "seven")


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
