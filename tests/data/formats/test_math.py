"""MATH rows: a final answer of its own, or the last box of the solution."""

from typing import Any

import pytest

from espalier.data.formats import sniff
from espalier.data.formats.math import read_math
from espalier.errors import RowError
from espalier.types import Origin


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "Q", "answer": "\\frac{1}{2}", "solution": "It is \\boxed{0.5}."}, "\\frac{1}{2}"),
        ({"problem": "Q", "solution": "It is \\boxed{\\sqrt{2}}."}, "\\sqrt{2}"),
        ({"question": "Q", "solution": "1+1=2\n#### 2"}, "2"),
        ({"problem": "Q", "answer": 3}, "3"),
    ],
)
def test_rows_by_eye(row: dict[str, Any], answer: str) -> None:
    assert sniff(row, "task") == "math"
    task = read_math(row, Origin())
    assert (task.answer, task.prompt[0].content, task.verifier, task.facts) == (answer, "Q", "", {})


def test_a_row_without_a_final_answer_is_refused() -> None:
    with pytest.raises(RowError, match=r"no final answer; field solution.*'It is 5\.'"):
        read_math({"problem": "Q", "solution": "It is 5."}, Origin())
