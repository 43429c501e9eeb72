"""Solutions cut into steps: a label for each step, the place of the first mistake, or the outcome alone."""

from __future__ import annotations

from typing import Any

from espalier.data.formats.common import Fields, blank, first_key, first_list, missing, shown, string, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.marked import is_shepherd, marked_turns, read_marked
from espalier.data.formats.messages import KEYS as TURNS
from espalier.data.formats.prompt import asked
from espalier.data.formats.ranked import is_ranked
from espalier.data.formats.scale import LABELS, RATINGS, STEPS, Scale, scale_of
from espalier.errors import RowError, nearest
from espalier.types import Consumes, Message, Origin, Steps

PROMPTS = ("prompt", "question", "problem", "query", "input")
SEVERAL = ("solutions", "responses", "response")
WHOLE = ("solution", "response", "completion", "answer", "output")
TEXTS = ("text", "content", "step", "value")
SOLVED = ("solved", "correct", "is_correct", "final_answer_correct")
WORDS: dict[str, float] = {
    "good": 1.0,
    "bad": 0.0,
    "neutral": 0.5,
    "+": 1.0,
    "-": 0.0,
    "correct": 1.0,
    "incorrect": 0.0,
    "positive": 1.0,
    "negative": 0.0,
    "right": 1.0,
    "wrong": 0.0,
    "true": 1.0,
    "false": 0.0,
    "yes": 1.0,
    "no": 0.0,
}
OWN = ("correct", "is_correct", "good")
"""Further labels of steps that are objects: true and false, or words."""
# As PRM800K rates steps.
RATING: dict[float, float] = {1: 1.0, 0: 0.5, -1: 0.0}
_LABEL = "true, false, good, bad, neutral or null"
OUTCOMES = (*SOLVED, "score")


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has steps, or completions with labels; if a run consumes steps, also whether it has judged
    responses, whose texts are cut into steps."""
    if consumes == "steps" and is_ranked(row):
        return True
    if marked_turns(row) or is_shepherd(row):
        return True
    if first_key(row, TURNS):
        return False
    if isinstance(row.get("steps"), list):
        return True
    several = first_list(row, SEVERAL) is not None and not is_ranked(row)
    if (consumes == "steps" or several) and _has_outcome(row):
        return True
    return isinstance(row.get("completions"), list) and isinstance(row.get("labels"), list)


def _has_outcome(row: Fields) -> bool:
    """Whether a row has a prompt, one solution or several, and whether they are right."""
    if first_key(row, PROMPTS) is None or first_key(row, SOLVED) is None:
        return False
    return first_list(row, SEVERAL) is not None or first_key(row, WHOLE) is not None


def read_steps(row: Fields, origin: Origin, scale: Scale | None = None) -> list[Steps]:
    """One Steps, or one for each of several solutions. The prompt may have a `system` turn before it.

    Steps stand in `steps` (BIG-bench-mistake, PRM800K, ProcessBench) or `completions` (Math-Shepherd as TRL keeps it),
    as strings or as objects with a text and a `label` or `rating` of their own. Their labels are the first of these:

        mistake_index 2 (null: none)             1 1 0 - - ...   what follows a first mistake was not judged
        label 2 (-1: none), beside plain steps   1 1 0 - - ...
        labels [true, "bad", "neutral", null]    1 0 0.5 -       of numbers, `scale` says what they mean
        ratings [1, -1, 0, null]                 1 0 0.5 -
        solved false                             - - - -         the outcome; the run decides what it says of steps

    An outcome is `solved`, `correct`, `is_correct` or `final_answer_correct` (true or false), or whether the texts
    `answer` and `target` are equal; an answer of null is not.

    A solution may be one text (`solution`, `response`, `completion`, `answer`): it is cut at its blank lines, or at
    every line if it has none. Several (`solutions`, `responses`, a list under `response`) are texts, lists of steps
    or objects like a row; their outcomes are a list, too, which may be called `score`.

    Steps may be objects with a `label` or `rating` each, turns with answers of + and - (`formats.marked`), or texts
    with a mark behind each (Math-Shepherd). Without a `scale`, the row's own numbers decide it.

    Raises RowError for labels of another number than steps, an index outside them, empty steps, a number whose scale
    is not known, and a row that judges nothing.
    """
    if marked_turns(row) or is_shepherd(row):
        prompt, texts, marks = read_marked(row)
        return [Steps(prompt, tuple(texts), tuple(marks), origin=origin)]
    scale = scale or scale_of([row])
    prompt = _prompt(row)
    key = first_list(row, SEVERAL)
    if key is None or first_key(row, STEPS):
        return [_solution(row, "", prompt, origin, scale)]
    solutions = row[key]
    if not solutions:
        raise RowError("no solutions", field=key, got="an empty list", expected="at least one solution")
    outcomes = first_list(row, OUTCOMES)
    if outcomes is not None and len(row[outcomes]) != len(solutions):
        got = f"{len(row[outcomes])} outcomes for {len(solutions)} solutions"
        raise RowError("another number of outcomes", field=outcomes, got=got, expected="one for each solution")
    examples = []
    for i, solution in enumerate(solutions):
        fields = _as_row(solution)
        if outcomes is not None:
            fields["solved"] = row[outcomes][i]
        examples.append(_solution(fields, f"{key}[{i}].", prompt, origin, scale))
    return examples


def _as_row(solution: Any) -> dict[str, Any]:
    """One of several solutions, as the row of a single one has it."""
    if isinstance(solution, dict):
        return dict(solution)
    return {"steps" if isinstance(solution, list) else "solution": solution}


def _prompt(row: Fields) -> tuple[Message, ...]:
    messages = asked(row, PROMPTS).messages
    key = first_key(row, PROMPTS) or PROMPTS[0]
    if not messages or messages[-1].role not in ("user", "tool"):
        got = f"the role {messages[-1].role} at the end" if messages else "an empty list"
        raise RowError("prompt without a question", field=key, got=got, expected="a user turn at the end")
    return tuple(messages)


def _solution(row: Fields, field: str, prompt: tuple[Message, ...], origin: Origin, scale: Scale) -> Steps:
    """One solution; `field` is where it stands in its row, with a dot at the end."""
    key, separator = first_key(row, STEPS), string(row, ("separator",), field, default="\n")
    objects: list[Any] = []
    if key is None:
        key = first_key(row, WHOLE)
        if key is None:
            expected = f"{' or '.join(STEPS)}, or a whole solution ({', '.join(WHOLE)})"
            raise missing(field + STEPS[0], row, expected)
        steps, separator = split(string(row, (key,), field))
    elif not isinstance(row[key], list):
        raise wrong_type(field + key, row[key], "a list of steps")
    else:
        steps = [_text(step, f"{field}{key}[{i}]") for i, step in enumerate(row[key])]
        objects = [step for step in row[key] if isinstance(step, dict)]
    here = field + key
    if not steps:
        raise RowError("no steps", field=here, got="no text", expected="at least one step")
    if objects and len(objects) < len(steps):
        got = f"{len(objects)} objects among {len(steps)} steps"
        raise RowError("mixed steps", field=here, got=got, expected="steps that are all texts or all objects")
    solved = _solved(row, field, key)
    if objects:
        labels = [_own(step, f"{here}[{i}]", scale) for i, step in enumerate(objects)]
    else:
        labels = _labels(row, len(steps), field, scale)
    if solved is None and all(label is None for label in labels):
        expected = f"mistake_index, {', '.join(LABELS)}, or an outcome ({', '.join(SOLVED)}; answer and target)"
        raise RowError("no label", field=here, got="steps without a judgement", expected=expected)
    return Steps(prompt, tuple(steps), tuple(labels), solved, separator, origin, soft=scale == "soft")


def split(text: str) -> tuple[list[str], str]:
    """The steps of a text and what stands between them: blank lines, or ends of lines if it has no blank line.

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
        raise blank("empty step", field, text, "a text to judge")
    return text


def _labels(row: Fields, count: int, field: str, scale: Scale) -> list[float | None]:
    """The labels that stand beside `count` steps, None for each if there are none."""
    listed = first_key(row, LABELS)
    # Null is an answer here, a solution without a mistake, unless other labels say more: tables fill columns with null.
    if row.get("mistake_index") is not None or ("mistake_index" in row and listed is None and row.get("label") is None):
        return _up_to(row["mistake_index"], None, count, f"{field}mistake_index")
    if row.get("label") is not None and not isinstance(row["label"], list):
        return _up_to(row["label"], -1, count, f"{field}label")
    if listed is None:
        return [None] * count
    labels, place = row[listed], field + listed
    if not isinstance(labels, list):
        raise wrong_type(place, labels, "a list with a label for each step")
    if len(labels) != count:
        got = f"{len(labels)} labels for {count} steps"
        raise RowError("another number of labels", field=place, got=got, expected="one for each step")
    if listed in RATINGS and scale == "labels":
        scale = "ratings"
    return [_label(label, scale, f"{place}[{i}]") for i, label in enumerate(labels)]


def _up_to(index: Any, no_mistake: int | None, count: int, field: str) -> list[float | None]:
    """Labels of steps whose first mistake is at `index`; `no_mistake` is the index of a solution without one."""
    if index == no_mistake and not isinstance(index, bool):
        return [1.0] * count
    expected = f"a place from 0 to {count - 1}, or {'null' if no_mistake is None else no_mistake} for no mistake"
    if isinstance(index, bool) or not isinstance(index, int):
        raise wrong_type(field, index, expected)
    if not 0 <= index < count:
        raise RowError("mistake outside the steps", field=field, got=f"{index} of {count} steps", expected=expected)
    return [1.0] * index + [0.0] + [None] * (count - index - 1)


def _own(step: Fields, field: str, scale: Scale) -> float | None:
    """The label of a step that is an object."""
    key = first_key(step, ("label", *RATINGS, *OWN))
    if key is None:
        return None
    if key in RATINGS and scale == "labels":
        scale = "ratings"
    return _label(step[key], scale, f"{field}.{key}")


def _label(value: Any, scale: Scale, field: str) -> float | None:
    """A label as a number; what a number means is said by `scale`."""
    if value is None:
        return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word not in WORDS:
            expected, fix = ", ".join(WORDS), nearest(word, WORDS)
            raise RowError("unknown label", field=field, got=shown(value), expected=expected, fix=fix)
        return WORDS[word]
    if not isinstance(value, int | float):
        raise wrong_type(field, value, _LABEL)
    if scale == "ratings":
        if value not in RATING:
            raise RowError("unknown label", field=field, got=shown(value), expected="-1, 0, 1, or a word: " + _LABEL)
        return RATING[value]
    if not 0 <= value <= 1:
        raise RowError("unknown label", field=field, got=shown(value), expected="0 to 1, or a word: " + _LABEL)
    return float(value)


def _solved(row: Fields, field: str, steps_key: str) -> bool | None:
    """The outcome of a solution whose steps stand under `steps_key`; None if it has none."""
    key = first_key(row, SOLVED)
    if key is not None:
        if row[key] not in (0, 1):
            raise wrong_type(field + key, row[key], "true or false")
        return bool(row[key])
    # An `answer` that was cut into steps is the solution, not the final answer that `target` is compared with.
    if isinstance(row.get("target"), str) and "answer" in row and steps_key != "answer":
        answer = row["answer"]
        return isinstance(answer, str) and answer.strip() == row["target"].strip()
    return None


FORMAT = Format("steps", read_steps, looks)
