"""PRM800K as published: the chosen completions are a solution, the others end one each."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.data.formats import convert, sniff
from espalier.errors import RowError
from espalier.types import Origin, Steps


def option(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": False}


def row(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"question": {"problem": "What is 1 + 1 + 1?"}, "label": {"steps": list(steps), "finish_reason": "solution"}}


FIRST = {"completions": [option("1 + 1 = 2", 1), option("1 + 1 = 3", -1), option("Hm.", 0)], "chosen_completion": 0}
LAST = {"completions": [option("2 + 1 = 4", -1)], "human_completion": None, "chosen_completion": None}
HUMAN = {"completions": [option("2 + 1 = 4", -1)], "human_completion": option("2 + 1 = 3", None)}


def solutions(*steps: dict[str, Any]) -> list[tuple[tuple[str, ...], tuple[float | None, ...]]]:
    made = convert("prm800k", row(*steps), Origin())
    assert all(isinstance(solution, Steps) for solution in made)
    return [(one.steps, one.labels) for one in made if isinstance(one, Steps)]


def test_chosen_completions_are_a_solution_and_others_end_one_each() -> None:
    assert sniff(row(FIRST), "steps") == "prm800k"
    assert solutions(FIRST, LAST) == [
        (("1 + 1 = 2",), (1.0,)),
        (("1 + 1 = 3",), (0.0,)),
        (("Hm.",), (0.5,)),
        (("1 + 1 = 2", "2 + 1 = 4"), (None, 0.0)),
    ]


def test_what_a_person_wrote_is_chosen_and_good() -> None:
    assert solutions(FIRST | {"completions": FIRST["completions"][:1]}, HUMAN) == [
        (("1 + 1 = 2", "2 + 1 = 3"), (1.0, 1.0)),
        (("1 + 1 = 2", "2 + 1 = 4"), (None, 0.0)),
    ]


@pytest.mark.parametrize(
    "steps",
    [
        (LAST, FIRST),
        ({"completions": [option("a b", 7)], "chosen_completion": 0},),
        ({"completions": [option("a b", None)], "chosen_completion": 0},),
        ({"completions": [option("a b", 1)], "chosen_completion": 3},),
    ],
)
def test_steps_that_cannot_be_followed_are_refused(steps: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(RowError):
        solutions(*steps)
