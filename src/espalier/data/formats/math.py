"""MATH: a problem and its answer, or a solution that has it in `\\boxed{}`. Hendrycks et al., arXiv:2103.03874."""

from __future__ import annotations

from espalier.data.columns.watched import peek
from espalier.data.formats.common import Fields, first_key, missing
from espalier.data.formats.format import Format
from espalier.data.formats.prompt import QUESTIONS
from espalier.data.formats.tasks import ANSWERS, MARK, SOLUTION, answers_of, final, has_prompt, task
from espalier.errors import RowError
from espalier.types import Consumes, Origin, Task


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a run answers tasks, and a row has a problem and its answer, or a solution that marks it."""
    if not has_prompt(row, consumes) or first_key(row, QUESTIONS) is None:
        return False
    key = first_key(row, (SOLUTION,))
    solution = None if key is None else peek(row, key)
    if isinstance(solution, str) and final(solution):
        return True
    return first_key(row, ("problem",)) is not None and first_key(row, ANSWERS) is not None


def read_math(row: Fields, origin: Origin) -> Task:
    """A Task of a problem and its answer, from `answer` or what the last `\\boxed{}` of its solution holds. Raises
    RowError if it has neither."""
    answers = answers_of(row)
    if not answers:
        key, expected = first_key(row, (SOLUTION,)), f"answer, or a solution with \\boxed{{}} or {MARK}"
        if key is None:
            raise missing("answer", row, expected)
        got = f"a solution that ends in {str(peek(row, key))[-40:]!r}"
        raise RowError("no final answer", field=key, got=got, expected=expected)
    return task(row, origin, answers=answers)


FORMAT = Format("math", read_math, looks)
