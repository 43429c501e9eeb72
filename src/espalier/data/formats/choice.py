"""Multiple choice: a question, its choices, and which of them is right."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from espalier.data.columns.contents import decoded
from espalier.data.columns.watched import peek
from espalier.data.formats.common import Fields, blank, first_key, missing, shown, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.prompt import QUESTIONS, Asked, asked
from espalier.data.formats.tasks import task, worded
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Task

ASKS = (*QUESTIONS, "question_stem", "sentence", "ctx")
CHOICES = ("choices", "options", "endings", "candidates")
TEXTS, LABELS = ("text", "texts"), ("label", "labels")
RIGHT = (
    *("answerKey", "answer_key", "answer_letter", "answer_idx", "answer_index", "correct", "correct_answer"),
    *("correct_option", "correct_choice", "answer", "label", "gold", "target"),
)
COLUMNS = (("opa", "opb", "opc", "opd", "ope"), tuple("ABCDEFGHIJ"))
"""Choices in columns of their own: MedMCQA's, arXiv:2203.14371, and letters."""
PLACE = "cop"
"""Beside `opa` ...: the place of the right choice, from 0."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABELLED = re.compile(r"\s*\(?([A-Za-z])\s*[).:]\s*(?=\S)")
_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?")


class Choices(NamedTuple):
    """The texts of the choices; the labels that the data has for them, empty if it has none; and the texts with the
    letters that stand in front of them."""

    texts: list[str]
    labels: list[str]
    written: list[str]


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a run answers tasks, and a row has a question, choices as a list or in columns, and which is right."""
    if consumes != "task" or first_key(row, ASKS) is None or right_key(row) is None:
        return False
    key = first_key(row, CHOICES)
    if key is None:
        return len(_columns(row)) > 1
    value = decoded(peek(row, key))
    if isinstance(value, dict):
        return first_key(value, TEXTS) is not None or all(len(name) == 1 for name in value)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str | dict) for text in value)


def read_choice(row: Fields, origin: Origin) -> Task:
    """A Task whose prompt is the question and, below it, its choices, one to a line with letters from A on; the letter
    of the right one is its answer, and `choices` in its facts are their texts.

    Which is right is a letter, a label of the choices, the text of one, or a place, counted from 0. Raises RowError.
    """
    if first_key(row, ASKS) is None:
        raise missing(ASKS[0], row, " or ".join(ASKS))
    choices = _choices(row)
    answer = LETTERS[_right(row, choices)]
    question = asked(row, ASKS)
    lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, choices.texts, strict=False)]
    last = question.messages[-1]
    if last.role != "user":
        expected = "a question, below which the choices are written"
        raise RowError("no question", field="prompt", got=f"turns that end on {last.role}", expected=expected)
    prompt = Message("user", "\n".join([last.content.rstrip(), "", *lines]))
    asks = Asked([*question.messages[:-1], prompt], question.tools, question.transcript)
    return task(row, origin, answer=answer, facts={"choices": choices.texts}, asks=asks)


def right_key(row: Fields) -> str | None:
    """The key under which a row says which choice is right."""
    columns = _columns(row)
    return first_key(row, (PLACE, *RIGHT) if columns and columns[0] in COLUMNS[0] else RIGHT)


def _columns(row: Fields) -> list[str]:
    """The columns that hold one choice each, in order; none if the row has no first two."""
    for names in COLUMNS:
        if all(peek(row, name) is not None for name in names[:2]):
            return [name for name in names if peek(row, name) is not None]
    return []


def _choices_in_columns(row: Fields) -> Choices:
    """The choices of a row that has each in a column. Raises RowError if one before another is missing."""
    columns = _columns(row)
    if not columns:
        raise missing(CHOICES[0], row, " or ".join((*CHOICES, "A and B and further letters", "opa and opb ...")))
    names = next(names for names in COLUMNS if columns[0] in names)
    for name, column in zip(names, columns, strict=False):
        if name != column:
            raise RowError("empty choice", field=name, got="null", expected=f"a text, as in {column} behind it")
    texts = []
    for column in columns:
        text = worded(row[column], column)
        if not text:
            raise blank("empty choice", column, text, "a text")
        texts.append(text)
    return Choices(_without_letters(texts), [], texts)


def _choices(row: Fields) -> Choices:
    key = first_key(row, CHOICES)
    if key is None:
        return _choices_in_columns(row)
    value, labels = decoded(row[key]), []
    if isinstance(value, dict):
        texts_key, labels_key = first_key(value, TEXTS), first_key(value, LABELS)
        if texts_key is not None and isinstance(value[texts_key], list):
            texts = list(value[texts_key])
            labels = list(value[labels_key]) if labels_key is not None else []
        else:
            labels, texts = list(value), [value[name] for name in value]
    elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        texts = [entry[first_key(entry, TEXTS) or "text"] if first_key(entry, TEXTS) else None for entry in value]
        labels = [entry[first_key(entry, LABELS) or "label"] for entry in value if first_key(entry, LABELS)]
    else:
        texts = value if isinstance(value, list) else []
    if not 2 <= len(texts) <= len(LETTERS):
        raise wrong_type(key, value, f"a list of 2 to {len(LETTERS)} choices")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong_type(f"{key}[{place}]", text, "a text")
        if not text.strip():
            raise blank("empty choice", f"{key}[{place}]", text, "a text")
    if labels and len(labels) != len(texts):
        raise RowError("labels do not fit the choices", field=key, got=f"{len(labels)} labels", expected="one for each")
    return Choices(_without_letters(texts), [str(label) for label in labels], texts)


def _without_letters(texts: list[str]) -> list[str]:
    """The texts without the letters A, B, C ... in front of them, if all have theirs.

    >>> _without_letters(["A)5", "B) 6"]), _without_letters(["A) 5", "6"])
    (['5', '6'], ['A) 5', '6'])
    """
    bare = []
    for letter, text in zip(LETTERS, texts, strict=False):
        match = _LABELLED.match(text)
        if match is None or match.group(1).upper() != letter:
            return [text.strip() for text in texts]
        bare.append(text[match.end() :].strip())
    return bare


def _right(row: Fields, choices: Choices) -> int:
    """The place of the right choice, from 0. Raises RowError."""
    key = right_key(row)
    if key is None:
        raise missing("answer", row, " or ".join(RIGHT))
    value: Any = row[key]
    count = len(choices.texts)
    place: int | None = None
    if isinstance(value, str):
        place = _place_of(value.strip(), choices)
    elif isinstance(value, int | float) and not isinstance(value, bool) and value in range(count):
        place = int(value)
    if place is None or place >= count:
        raise RowError(
            "unknown choice",
            field=key,
            got=shown(value),
            expected=f"a letter from A to {LETTERS[count - 1]}, one of the choices, or a place from 0 to {count - 1}",
            fix="If places count from 1, write letters",
        )
    return place


def _place_of(text: str, choices: Choices) -> int | None:
    """The place that a label, a text of the choices, a letter or digits name, in this order; None if they name none."""
    for names in (choices.labels, choices.written, choices.texts):
        stripped = [name.strip() for name in names]
        if stripped.count(text) == 1:
            return stripped.index(text)
    letter = _LETTER.fullmatch(text)
    if letter is not None:
        return LETTERS.index(letter.group(1).upper())
    return int(text) if text.isascii() and text.isdigit() and not choices.labels else None


def counts_from_0(row: Fields) -> bool:
    """Whether the right choice of a row is named by its place."""
    key = right_key(row)
    value = None if key is None else peek(row, key)
    return isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdigit())


FORMAT = Format("choice", read_choice, looks)
