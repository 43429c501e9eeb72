"""What a reward declares: settings from text, what of a task it needs."""

from __future__ import annotations

import pytest

from espalier.errors import ConfigError
from espalier.rewards.reward import Answer, Reward, Setting
from espalier.types import Message, Task


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
