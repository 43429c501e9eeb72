"""Rewards that compare numbers: `numeric` and `gsm8k`."""

from __future__ import annotations

import math
from fractions import Fraction

from espalier.rewards.builtin.answers import boxed, final_number, marked, number, numbers, phrased
from espalier.rewards.reward import Answer, Known, Reward, Setting, Settings
from espalier.types import Task


def right_number(answer: str) -> Fraction:
    """The number of a task's answer: of a worked solution the one behind its `####` or in its box, else its only one.

    Raises ValueError if it holds none, or several of which none is marked.
    """
    for place in (marked(answer), boxed(answer), phrased(answer)):
        value = number(place) if place is not None else None
        if value is not None:
            return value
    values = numbers(answer.rpartition("=")[2])
    if len(values) != 1:
        raise ValueError(f"the task's answer {answer[:60]!r} holds {len(values)} numbers; expected one, or one marked")
    return values[0]


def grade_numeric(answer: Answer, settings: Settings) -> float | dict[str, str]:
    r"""1 if |x - y| <= tolerance * max(1, |y|), else 0, with y the task's number and x the one the response ends on.

    x is read from the last `\boxed{}`, else behind the last `####`, else behind the last "answer is", else it is the
    last number of the text (`answers`). Numbers are compared as fractions: 0.5 = 1/2, and 1,200 = 1200.00; signs of
    units are dropped, so 50% is 50 and not 0.5. A response without a number is invalid.
    """
    value = final_number(answer.response)
    if value is None:
        return {"invalid": "no number"}
    right = right_number(answer.answer)
    scale = max(Fraction(1), abs(right))
    return float(abs(value - right) <= Fraction(settings["tolerance"]) * scale)


def gold_numeric(task: Task) -> str:
    """`The answer is Y.`"""
    return f"The answer is {_text(right_number(task.answer))}."


def grade_gsm8k(answer: Answer, settings: Settings) -> float | dict[str, str]:
    """1 if the number behind the last `####` of the response is the task's, else 0.

    The form of GSM8K (2110.14168): a solution whose last line is `#### 1,234`; a unit before or behind the number, `$`,
    thousands separators and a final full stop do not count. A response without a number behind a `####` is invalid.
    GSM8K's own script reads the first `####`; here a solution that goes on after it is graded by its last one.
    """
    place = marked(answer.response)
    value = number(place) if place is not None else None
    if value is None:
        return {"invalid": "no number behind ####"}
    return float(value == right_number(answer.answer))


def gold_gsm8k(task: Task) -> str:
    """The data's own solution if it has a `####`, else `#### Y`."""
    return task.answer if marked(task.answer) else f"#### {_text(right_number(task.answer))}"


def _text(value: Fraction) -> str:
    """An integer or `a/b`."""
    return str(value)


def _check(settings: Settings) -> None:
    if not 0 <= settings["tolerance"] < math.inf:
        raise ValueError(f"tolerance is {settings['tolerance']}; expected 0 or more")


NUMERIC = Reward(
    "numeric",
    "1 if the number the response ends on (boxed, behind ####, behind 'answer is', or the last) is the task's.",
    grade_numeric,
    needs=("answer",),
    gold=gold_numeric,
    settings={"tolerance": Setting(0.0, "Allowed difference, relative to the right number if that is above 1.")},
    check=_check,
    known=(
        Known("The answer is 42.", 1.0, answer="42"),
        Known("6 * 7 = 42", 1.0, answer="42.0"),
        Known(r"So \boxed{\frac{1}{2}}, not 3.", 1.0, answer="0.5"),
        Known("It costs $1,200.00 in all.", 1.0, answer="1200"),
        Known("The answer is 41, I changed it from 42.", 0.0, answer="42"),
        Known("It is -7 degrees.", 1.0, answer="-7"),
        Known("10-7", 1.0, answer="7"),
        Known("3.14", 0.0, answer="3.14159"),
        Known("3.14", 1.0, answer="3.14159", settings={"tolerance": 0.001}),
        Known("I do not know.", "invalid", answer="42"),
        Known("", "invalid", answer="42"),
    ),
)

GSM8K = Reward(
    "gsm8k",
    "1 if the number behind the last #### is the task's.",
    grade_gsm8k,
    needs=("answer",),
    gold=gold_gsm8k,
    known=(
        Known("48+24=72\n#### 72", 1.0, answer="48/2 = 24\n#### 72"),
        Known("#### 1,234", 1.0, answer="1234"),
        Known("#### $18.00 a day.", 1.0, answer="18"),
        Known("#### -3", 0.0, answer="3"),
        Known("#### 72\n#### 71", 0.0, answer="72"),
        Known("The answer is 72.", "invalid", answer="72"),
        Known("#### ", "invalid", answer="72"),
        Known("", "invalid", answer="72"),
    ),
)
