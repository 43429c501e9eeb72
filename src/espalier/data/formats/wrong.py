"""Answers that a row itself calls wrong: not to be learned from as they are."""

from __future__ import annotations

from typing import Any

from espalier.data.columns.watched import peek
from espalier.data.formats.chats import CHATS
from espalier.data.formats.common import Fields

VERDICTS = (
    *("correct", "is_correct", "correctness", "final_answer_correct", "solved", "is_solved", "verified", "is_safe"),
    *("label", "kto_tag", "is_valid", "solution_is_valid", "passed"),
)
"""Columns that say whether the answer of a row is right."""
ONE_ANSWER = (*(form.name for form in CHATS if form.name != "text"), "completion", "labels")
"""Formats of one answer, which its row may call wrong."""
CLASSES = ("label", "correctness")
"""Those whose numbers may mean something else: a class, a grade."""
BAD = ("false", "no", "bad", "wrong", "incorrect", "-")
SKIPPED = "answers skipped that their rows call wrong; --keep-wrong trains them"


def verdict(row: Fields, graded: frozenset[str] = frozenset()) -> str | None:
    """Which of VERDICTS calls the answer of a row wrong: false, 0 or a word such as "no"; None if none does.

    Numbers under the names in `graded` are no verdicts.

    >>> verdict({"prompt": "1 + 1?", "response": "3", "is_correct": False}), verdict({"correct": 1})
    ('is_correct', None)
    """
    if not isinstance(row, dict):
        return None
    for key in VERDICTS:
        value = peek(row, key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is not None and _is_bad(value, key in graded):
            # Looked up, so that it counts as read.
            row.get(key)
            return key
    return None


def _is_bad(value: Any, graded: bool) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in BAD
    if isinstance(value, bool):
        return not value
    return isinstance(value, int | float) and value == 0 and not graded


def graded(rows: list[Any]) -> frozenset[str]:
    """Which of CLASSES hold other numbers than 0 and 1 in some row."""
    names = set()
    for row in rows:
        for key in CLASSES:
            value = peek(row, key) if isinstance(row, dict) else None
            if isinstance(value, int | float) and value not in (0, 1):
                names.add(key)
    return frozenset(names)
