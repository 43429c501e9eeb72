"""GSM8K: a question, and a worked solution that ends in `#### ANSWER`. Cobbe et al., arXiv:2110.14168."""

from __future__ import annotations

from espalier.data.columns.watched import peek
from espalier.data.formats.common import Fields, first_key, shown, string
from espalier.data.formats.format import Format
from espalier.data.formats.tasks import MARK, final, has_prompt, task
from espalier.errors import RowError
from espalier.types import Consumes, Origin, Task


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a run answers tasks, and a row has a question and an answer that ends in `#### ANSWER`."""
    key = first_key(row, ("answer",))
    text = None if key is None else peek(row, key)
    return has_prompt(row, consumes) and isinstance(text, str) and MARK in text


def read_gsm8k(row: Fields, origin: Origin) -> Task:
    """A Task of a question and the rest of the line behind the last `####` of its answer. Raises RowError."""
    text = string(row, ("answer",))
    if MARK not in text or not final(text):
        expected = f"{MARK} and the final answer, at its end"
        raise RowError("no final answer", field="answer", got=shown(text[-60:]), expected=expected)
    return task(row, origin, answer=final(text))


FORMAT = Format("gsm8k", read_gsm8k, looks)
