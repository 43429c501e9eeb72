"""The reward that compares texts: `exact`."""

from __future__ import annotations

from espalier.rewards.reward import Answer, Known, Reward, Setting, Settings
from espalier.types import Task


def grade_exact(answer: Answer, settings: Settings) -> float:
    """1 if the response is the task's answer, blanks at both ends aside, else 0.

    With `part: last_line` only the last line of the response that is not blank is compared, with `contains` the answer
    may stand anywhere in it. `ignore_case` compares case-folded texts; `squeeze` makes every run of blanks and line
    breaks one blank.
    """
    response, right = _normal(answer.response, settings), _normal(answer.answer, settings)
    if settings["part"] == "contains":
        return float(right in response)
    if settings["part"] == "last_line":
        lines = [line.strip() for line in answer.response.strip().splitlines() if line.strip()]
        response = _normal(lines[-1], settings) if lines else ""
    return float(response == right)


def _normal(text: str, settings: Settings) -> str:
    text = " ".join(text.split()) if settings["squeeze"] else text.strip()
    return text.casefold() if settings["ignore_case"] else text


def gold_exact(task: Task) -> str:
    """The answer itself."""
    return task.answer


EXACT = Reward(
    "exact",
    "1 if the response is the task's answer, character by character, blanks at the ends aside.",
    grade_exact,
    needs=("answer",),
    gold=gold_exact,
    settings={
        "part": Setting(
            "whole",
            "What is compared: the whole response, its last line, or whether it contains the answer.",
            choices=("whole", "last_line", "contains"),
        ),
        "ignore_case": Setting(False, "Whether upper and lower case are the same."),
        "squeeze": Setting(False, "Whether runs of blanks and line breaks count as one blank."),
    },
    known=(
        Known("Paris", 1.0, answer="Paris"),
        Known(" Paris\n", 1.0, answer="Paris"),
        Known("paris", 0.0, answer="Paris"),
        Known("paris", 1.0, answer="Paris", settings={"ignore_case": True}),
        Known("It is Paris.", 0.0, answer="Paris"),
        Known("It is Paris.", 1.0, answer="Paris", settings={"part": "contains"}),
        Known("A city:\n\nParis\n", 1.0, answer="Paris", settings={"part": "last_line"}),
        Known("New\n York", 1.0, answer="New York", settings={"squeeze": True}),
        Known("", 0.0, answer="Paris"),
    ),
)
