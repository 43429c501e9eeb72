"""Solutions whose steps have marks: turns that are answered by + and -, and texts with a mark behind each step.

Dong et al. (RLHFlow), arXiv:2405.07863, make a conversation of the first; Wang et al. (Math-Shepherd),
arXiv:2312.08935, the second.
"""

from __future__ import annotations

import re
from typing import Any

from espalier.data.columns.watched import peek
from espalier.data.formats.common import Fields, shown
from espalier.data.formats.messages import turns_key
from espalier.data.formats.sharegpt import turns
from espalier.errors import RowError
from espalier.types import Message

MARKS = {"+": 1.0, "-": 0.0}
TAG = "\u043a\u0438"
"""What stands behind each step of the text that is not marked."""
_FIRST = re.compile(r"\s*(?=Step 1\s*[:.])")
_WORDS = ("content", "value")


def marked_turns(row: Fields) -> bool:
    """Whether all answers of a conversation are marks, + or -."""
    key = turns_key(row)
    value = None if key is None else peek(row, key)
    if not isinstance(value, list) or len(value) < 2 or len(value) % 2:
        return False
    if not all(isinstance(turn, dict) for turn in value):
        return False
    return all(_text(turn) in MARKS for turn in value[1::2]) and _text(value[0]) not in MARKS


def _text(turn: Fields) -> str:
    for key in _WORDS:
        text = peek(turn, key)
        if isinstance(text, str):
            return text.strip()
    return ""


def is_shepherd(row: Fields) -> bool:
    """Whether a row has a solution with a tag behind each step, and the same text with marks instead of tags."""
    text, label = peek(row, "input"), peek(row, "label")
    return isinstance(text, str) and isinstance(label, str) and TAG in text and TAG not in label


def refuse_marks(row: Any) -> None:
    """Raise RowError for a conversation whose answers are marks, which a model would learn to say."""
    if isinstance(row, dict) and marked_turns(row):
        got, expected = "steps as questions, and answers of + and -", "a conversation"
        raise RowError("marks of steps", got=got, expected=expected)


def read_marked(row: Fields) -> tuple[tuple[Message, ...], list[str], list[float]]:
    """The prompt, the steps and their labels. Raises RowError if the first step cannot be told from the problem."""
    key = turns_key(row)
    if key is not None:
        messages = turns(row[key], key)
        texts = [message.content.strip() for message in messages[::2]]
        marks = [message.content.strip() for message in messages[1::2]]
    else:
        key = "input"
        texts, marks = _cut(row[key], row["label"])
    problem, first = _problem(texts[0], key)
    steps = [first, *texts[1:]]
    return (Message("user", problem),), steps, [MARKS[mark] for mark in marks]


def _cut(text: Any, label: Any) -> tuple[list[str], list[str]]:
    """The texts before the tags, and the marks that stand in the label where the tags stand in the text."""
    pieces = text.split(TAG)
    marks, at = [], 0
    for piece in pieces[:-1]:
        at += len(piece)
        mark = label[at : at + 1]
        if mark not in MARKS or label[at - len(piece) : at] != piece:
            got = shown(label[max(0, at - 20) : at + 5])
            raise RowError("marks do not fit the steps", field="label", got=got, expected="the input with + and -")
        marks.append(mark)
        at += 1
    return [piece.strip() for piece in pieces[:-1]], marks


def _problem(text: str, field: str) -> tuple[str, str]:
    """The problem and the first step of a text that holds both."""
    border = _FIRST.search(text)
    if border is None or not text[: border.start()].strip():
        expected = "a problem, then 'Step 1:'"
        fix = "Write the problem in prompt, the steps in a list completions, and labels beside it"
        raise RowError("no border of the problem", field=field, got=shown(text), expected=expected, fix=fix)
    return text[: border.start()].strip(), text[border.end() :].strip()
