"""Solutions whose steps have marks are read by a run on steps, and never taught as answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.formats.marked import TAG
from espalier.data.read import Source, read
from espalier.errors import RowError
from espalier.types import Steps

TURNS = [
    {"role": "user", "content": "What is 2 + 3? Step 1: Take 2."},
    {"role": "assistant", "content": "+"},
    {"role": "user", "content": "Step 2: It is 6."},
    {"role": "assistant", "content": "-"},
]
SHEPHERD = {
    "input": f"What is 2 + 3? Step 1: Take 2. {TAG}\nStep 2: It is 6. {TAG}",
    "label": "What is 2 + 3? Step 1: Take 2. +\nStep 2: It is 6. -",
}


def first(path: Path, row: dict[str, Any], consumes: Any) -> Any:
    path.write_text(json.dumps(row))
    return next(read(Source(str(path), consumes=consumes)))


@pytest.mark.parametrize("row", [{"conversations": TURNS}, SHEPHERD])
def test_marks_are_labels_of_steps(row: dict[str, Any], tmp_path: Path) -> None:
    made = first(tmp_path / "a.jsonl", row, "steps")
    assert isinstance(made, Steps)
    assert [m.content for m in made.prompt] == ["What is 2 + 3?"]
    assert (made.steps, made.labels) == (("Step 1: Take 2.", "Step 2: It is 6."), (1.0, 0.0))


def test_a_conversation_of_marks_is_refused_with_the_reason(tmp_path: Path) -> None:
    made = first(tmp_path / "a.jsonl", {"conversations": TURNS}, "chat")
    assert isinstance(made, RowError) and made.reason == "marks of steps" and "espalier prm" in made.fix


def test_a_problem_without_a_border_and_marks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = first(tmp_path / "a.jsonl", {"conversations": [{"role": "user", "content": "2 + 3 = 5"}, TURNS[1]]}, "steps")
    assert isinstance(made, RowError) and made.reason == "no border of the problem"
    made = first(tmp_path / "b.jsonl", SHEPHERD | {"label": "Something else +"}, "steps")
    assert isinstance(made, RowError) and made.reason == "marks do not fit the steps"
