"""Multiple choice: what is asked, and which letter is right."""

from typing import Any

import pytest

from espalier.data.formats import sniff
from espalier.data.formats.choice import read_choice
from espalier.data.formats.remarks import PLACES, remarks
from espalier.errors import RowError
from espalier.types import Origin

COLOURS = ["red", "green", "blue"]
WRITTEN = "Which?\n\nA) red\nB) green\nC) blue"


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"choices": COLOURS, "answer": 1}, "B"),
        ({"choices": COLOURS, "answer": "b"}, "B"),
        ({"choices": COLOURS, "answer": "(C)"}, "C"),
        ({"choices": COLOURS, "answer": "green"}, "B"),
        ({"choices": COLOURS, "label": "2"}, "C"),
        ({"choices": '["red", "green", "blue"]', "answer": 0}, "A"),
        ({"options": ["A)red", "B)green", "C)blue"], "correct": "A"}, "A"),
        ({"options": ["(a) red", "(b) green", "(c) blue"], "answer": "(b) green"}, "B"),
        ({"options": {"A": "red", "B": "green", "C": "blue"}, "answer": "green", "answer_idx": "B"}, "B"),
        ({"choices": {"text": COLOURS, "label": ["1", "2", "3"]}, "answerKey": "2"}, "B"),
        ({"A": "red", "B": "green", "C": "blue", "answer": "C"}, "C"),
        ({"A": "red", "B": "green", "C": "blue", "D": None, "answer": "green"}, "B"),
        ({"opa": "red", "opb": "green", "opc": "blue", "cop": 0}, "A"),
        ({"opa": "red", "opb": "green", "opc": "blue", "opd": None, "cop": 2, "exp": "Ans. is 'a'"}, "C"),
        ({"choices": [{"text": text, "label": "XYZ"[i]} for i, text in enumerate(COLOURS)], "answerKey": "Z"}, "C"),
    ],
)
def test_rows_by_eye(row: dict[str, Any], answer: str) -> None:
    row = {"question": "Which?", **row}
    assert sniff(row, "task") == "choice"
    task = read_choice(row, Origin())
    assert (task.prompt[0].content, task.answer, task.facts) == (WRITTEN, answer, {"choices": COLOURS})


def test_choices_whose_texts_are_numbers_are_named_by_them_first() -> None:
    """The text "2" is a choice, before it is a place."""
    task = read_choice({"question": "1 + 1?", "choices": ["1", "2", "3"], "answer": "2"}, Origin())
    assert task.answer == "B"


@pytest.mark.parametrize("answer", [3, -1, 1.5, True, "D", "purple", "4"])
def test_an_answer_that_is_no_choice_is_refused(answer: Any) -> None:
    with pytest.raises(RowError, match=r"unknown choice.*a letter from A to C.*write letters"):
        read_choice({"question": "Which?", "choices": COLOURS, "answer": answer}, Origin())


@pytest.mark.parametrize("choices", [["red"], ["red", 5], ["red", ""], {"text": COLOURS, "label": ["1"]}, "red"])
def test_choices_that_are_none_are_refused(choices: Any) -> None:
    with pytest.raises(RowError):
        read_choice({"question": "Which?", "choices": choices, "answer": "A"}, Origin())


def test_places_are_said_to_count_from_0() -> None:
    assert list(remarks("choice", {"question": "Which?", "choices": COLOURS, "answer": 1})) == [PLACES]
    assert list(remarks("choice", {"question": "Which?", "choices": COLOURS, "answer": "B"})) == []


def test_a_question_with_choices_and_no_answer_is_a_prompt() -> None:
    assert sniff({"question": "Which?", "choices": COLOURS}, "task") == "task"


def test_columns_that_lack_a_choice_or_the_right_one_are_refused() -> None:
    """A place of MedMCQA's counts from 0; of a row whose answer is hidden it is -1."""
    columns = {"question": "Which?", "opa": "red", "opb": "green", "opc": "blue", "opd": "gold"}
    for place in (4, -1):
        with pytest.raises(RowError, match=r"unknown choice; field cop.*a place from 0 to 3"):
            read_choice({**columns, "cop": place}, Origin())
    with pytest.raises(RowError, match=r"empty choice; field opc.*as in opd behind it"):
        read_choice({**columns, "opc": None, "cop": 0}, Origin())
    assert list(remarks("choice", {**columns, "cop": 1})) == [PLACES]
    assert sniff({**columns, "exp": "Red."}, "task") == "task"
    with pytest.raises(RowError, match="A and B and further letters"):
        read_choice({"question": "Which?", "A": "red", "answer": "A"}, Origin())
    numbers = read_choice({"question": "1 + 1?", "A": 1, "B": 2.0, "answer": "B"}, Origin())
    assert (numbers.prompt[0].content, numbers.answer) == ("1 + 1?\n\nA) 1\nB) 2", "B")
