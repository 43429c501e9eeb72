"""Solutions cut into steps: a label for each step, the place of the first mistake, or the outcome alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.data.formats.common import Fields, first_key, missing, shown, string, wrong_type
from espalier.data.formats.messages import message_list
from espalier.errors import RowError, nearest
from espalier.types import Message, Origin, Steps

PROMPTS = ("prompt", "question", "problem", "query", "input")
STEPS = ("steps", "completions")
SEVERAL = ("solutions", "responses", "response")
WHOLE = ("solution", "response", "completion", "answer", "output")
TEXTS = ("text", "content", "step", "value")
LABELS = ("labels", "ratings")
SOLVED = ("solved", "correct", "is_correct", "final_answer_correct")
WORDS: dict[str, float] = {"good": 1.0, "bad": 0.0, "neutral": 0.5, "+": 1.0, "-": 0.0}
_RATINGS: dict[float, float] = {1: 1.0, 0: 0.5, -1: 0.0}
_LABEL = "true, false, good, bad, neutral or null"


def read_steps(row: Fields, origin: Origin) -> list[Steps]:
    """One Steps, or one for each of several solutions. The prompt may have a `system` turn before it.

    Steps stand in `steps` (BIG-bench-mistake, PRM800K, ProcessBench) or `completions` (Math-Shepherd as TRL keeps it),
    as strings or as objects with a text and a `label` or `rating` of their own. What is known of them, first found:

        mistake_index 2 (null: none)             1 1 0 - - ...   what follows a first mistake was not judged
        label 2 (-1: none), beside plain steps   1 1 0 - - ...
        labels [true, "bad", "neutral", null]    1 0 0.5 -
        ratings [1, -1, 0, null]                 1 0 0.5 -       as are labels and ratings of steps that are objects
        solved false                             - - - -         the outcome, for whoever trains to say what it means

    An outcome is `solved`, `correct`, `is_correct` or `final_answer_correct` (true or false), or whether the texts
    `answer` and `target` are equal; an answer of null is not.

    A solution may be one text (`solution`, `response`, `completion`, `answer`): it is cut at its blank lines, or at
    every line where it has none. Several (`solutions`, `responses`, a list under `response`) are texts, lists of steps
    or objects like a row; their outcomes are a list, too, which may be called `score`.

    Raises RowError for labels of another number than steps, an index outside them, empty steps, a number whose scale
    is not known, and a row that judges nothing.
    """
    prompt = _prompt(row)
    key = next((key for key in SEVERAL if isinstance(row.get(key), list)), None)
    if key is None or first_key(row, STEPS):
        return [_solution(row, "", prompt, origin)]
    listed = row[key]
    if not listed:
        raise RowError("no solutions", field=key, got="an empty list", expected="at least one solution")
    outcomes = next((name for name in (*SOLVED, "score") if isinstance(row.get(name), list)), None)
    if outcomes is not None and len(row[outcomes]) != len(listed):
        got = f"{len(row[outcomes])} outcomes for {len(listed)} solutions"
        raise RowError("another number of outcomes", field=outcomes, got=got, expected="one for each solution")
    made = []
    for i, solution in enumerate(listed):
        own = dict(solution) if isinstance(solution, dict) else {_form(solution): solution}
        if outcomes is not None:
            own["solved"] = row[outcomes][i]
        made.append(_solution(own, f"{key}[{i}].", prompt, origin))
    return made


def _form(solution: Any) -> str:
    return "steps" if isinstance(solution, list) else "solution"


def _prompt(row: Fields) -> tuple[Message, ...]:
    key = first_key(row, PROMPTS)
    if key is None:
        raise missing(PROMPTS[0], row, " or ".join(PROMPTS))
    system = string(row, ("system",), default="")
    lead = [Message("system", system)] if system else []
    if isinstance(row[key], list):
        messages = [*lead, *message_list(row[key], key)]
        if not messages or messages[-1].role not in ("user", "tool"):
            got = f"the role {messages[-1].role} at the end" if messages else "an empty list"
            raise RowError("prompt without a question", field=key, got=got, expected="a user turn at the end")
        return tuple(messages)
    if not string(row, (key,)).strip():
        raise RowError("empty prompt", field=key, got=f"content {row[key][:20]!r}", expected="a text to answer")
    return (*lead, Message("user", row[key]))


def _solution(row: Fields, field: str, prompt: tuple[Message, ...], origin: Origin) -> Steps:
    """One solution; `field` is where it stands in its row, with a dot at the end."""
    key, separator = first_key(row, STEPS), string(row, ("separator",), field, default="\n")
    own: list[Any] = []
    whole = None
    if key is None:
        whole = first_key(row, WHOLE)
        if whole is None:
            raise missing(field + STEPS[0], row, f"{' or '.join(STEPS)}, or a whole solution ({', '.join(WHOLE)})")
        steps, separator = split(string(row, (whole,), field))
        here = f"{field}{whole}"
    elif not isinstance(row[key], list):
        raise wrong_type(field + key, row[key], "a list of steps")
    else:
        here = f"{field}{key}"
        steps = [_text(step, f"{here}[{i}]") for i, step in enumerate(row[key])]
        own = [step for step in row[key] if isinstance(step, dict)]
    if not steps:
        raise RowError("no steps", field=here, got="no text", expected="at least one step")
    if own and len(own) < len(steps):
        got = f"{len(own)} objects among {len(steps)} steps"
        raise RowError("mixed steps", field=here, got=got, expected="steps that are all texts or all objects")
    solved = _solved(row, field, whole)
    labels = _labels(row, own, len(steps), field, here)
    if solved is None and all(label is None for label in labels):
        expected = f"mistake_index, {', '.join(LABELS)}, or an outcome ({', '.join(SOLVED)}; answer and target)"
        raise RowError("no label", field=here, got="steps that nobody judged", expected=expected)
    return Steps(prompt, tuple(steps), tuple(labels), solved, separator, origin)


def split(text: str) -> tuple[list[str], str]:
    """The steps of a text and what stands between them: blank lines, or ends of lines where it has no blank line.

    Joining gives the text back, without the space around it; a step that would be blank goes with the one before it.

    >>> split("a\\nb"), split("a\\nb\\n\\nc"), split("a\\n\\n\\n\\nb")
    ((['a', 'b'], '\\n'), (['a\\nb', 'c'], '\\n\\n'), (['a\\n\\n', 'b'], '\\n\\n'))
    """
    text = text.strip()
    separator = "\n\n" if "\n\n" in text else "\n"
    steps: list[str] = []
    for piece in text.split(separator) if text else ():
        if piece.strip():
            steps.append(piece)
        else:
            steps[-1] += separator + piece
    return steps, separator


def _text(step: Any, field: str) -> str:
    text = string(step, TEXTS, f"{field}.") if isinstance(step, dict) else step
    if not isinstance(text, str):
        raise wrong_type(field, step, "a text, or an object with text and label")
    if not text.strip():
        raise RowError("empty step", field=field, got=f"content {text[:20]!r}", expected="a text to judge")
    return text


def _labels(row: Fields, own: list[Any], count: int, field: str, here: str) -> list[float | None]:
    if own:
        return [_own(step, f"{here}[{i}]") for i, step in enumerate(own)]
    if "mistake_index" in row:
        return _up_to(row["mistake_index"], None, count, f"{field}mistake_index")
    if row.get("label") is not None:
        return _up_to(row["label"], -1, count, f"{field}label")
    key = first_key(row, LABELS)
    if key is None:
        return [None] * count
    given, place = row[key], field + key
    if not isinstance(given, list):
        raise wrong_type(place, given, "a list with a label for each step")
    if len(given) != count:
        got = f"{len(given)} labels for {count} steps"
        raise RowError("another number of labels", field=place, got=got, expected="one for each step")
    scale = _RATINGS if key == "ratings" else {}
    return [_label(label, scale, f"{place}[{i}]") for i, label in enumerate(given)]


def _up_to(index: Any, none: int | None, count: int, field: str) -> list[float | None]:
    """Labels of steps whose first mistake is at `index`, `none` being the word for no mistake."""
    if index == none and not isinstance(index, bool):
        return [1.0] * count
    expected = f"a place from 0 to {count - 1}, or {'null' if none is None else none} for no mistake"
    if isinstance(index, bool) or not isinstance(index, int):
        raise wrong_type(field, index, expected)
    if not 0 <= index < count:
        raise RowError("mistake outside the steps", field=field, got=f"{index} of {count} steps", expected=expected)
    return [1.0] * index + [0.0] + [None] * (count - index - 1)


def _own(step: Fields, field: str) -> float | None:
    """The label of a step that is an object, whose numbers are ratings."""
    key = first_key(step, ("label", "rating"))
    return None if key is None else _label(step[key], _RATINGS, f"{field}.{key}")


def _label(value: Any, scale: Mapping[float, float], field: str) -> float | None:
    """A label as a number; numbers are read by `scale`, empty where 0 could be bad or neutral."""
    if value is None or isinstance(value, bool):
        return None if value is None else float(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word not in WORDS:
            expected = ", ".join(WORDS)
            raise RowError("unknown label", field=field, got=shown(value), expected=expected, fix=nearest(word, WORDS))
        return WORDS[word]
    if not isinstance(value, int | float):
        raise wrong_type(field, value, _LABEL)
    if not scale:
        fix = "Name the column ratings where 0 is neutral and -1 bad, or write true and false"
        raise RowError("label without a scale", field=field, got=shown(value), expected=_LABEL, fix=fix)
    if value not in scale:
        raise RowError("unknown label", field=field, got=shown(value), expected="-1, 0, 1, or a word: " + _LABEL)
    return scale[value]


def _solved(row: Fields, field: str, whole: str | None) -> bool | None:
    key = first_key(row, SOLVED)
    if key is not None:
        if row[key] not in (0, 1):
            raise wrong_type(field + key, row[key], "true or false")
        return bool(row[key])
    if isinstance(row.get("target"), str) and "answer" in row and whole != "answer":
        answer = row["answer"]
        return isinstance(answer, str) and answer.strip() == row["target"].strip()
    return None
