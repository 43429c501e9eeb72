"""Rows whose answers are to be judged, not learned from: no rank, score or label is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from espalier.data.columns.watched import WatchedRow, peek
from espalier.data.formats.common import Fields, first_key, first_list, template_args, wrong_type
from espalier.data.formats.judged import answer, pair_keys
from espalier.data.formats.prompt import PROMPTS, asked, keys_of
from espalier.data.formats.ranked import KEYS
from espalier.data.formats.scale import LABELS, STEPS
from espalier.data.formats.steps import OUTCOMES, SEVERAL, SOLVED, TEXTS, split
from espalier.data.render.trees import rankings
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Example, Message, Origin, Ranking, Response, Steps, Tree

EMPTY = "empty assistant turn"
Convert = Callable[[str, Fields], Sequence[Example]]


def read_unjudged(
    name: str | None, row: Fields, origin: Origin, consumes: Consumes, convert: Convert
) -> Sequence[Example]:
    """The examples of a row whose format, judgements aside, is `name` (None: not known); `convert` reads a format.

    A list of answers is one Ranking, with a message without text in place of an empty answer; steps have no labels.
    Raises RowError for a row without an answer.
    """
    if not isinstance(row, dict):
        raise wrong_type("", row, "a JSON object")
    key, pair = _answers(row), pair_keys(row)
    stepped = consumes == "steps" and (
        first_list(row, STEPS) or (first_list(row, SEVERAL) and name in (None, "ranked"))
    )
    try:
        if name == "steps" or stepped:
            return convert("steps", _solved(row))
        if key and (name in (None, "ranked") or (name == "prompt" and key == _answer_key(row))):
            return [_listed(row, key, origin)]
        if name is not None:
            return convert(name, row)
    except RowError:
        # What could not be read may have been a judgement.
        if key:
            return [_listed(row, key, origin)]
        if pair and first_key(row, PROMPTS):
            both = _edited(row, {**dict(row), "chosen and rejected": [row[pair[0]], row[pair[1]]]})
            return [_listed(both, "chosen and rejected", origin)]
        if name != "prompt" and keys_of(row) is not None:
            return convert("prompt", row)
        raise
    raise RowError("no answer", got=f"an object with {', '.join(list(row)[:8])}", expected="a prompt and an answer")


def _answers(row: Fields) -> str | None:
    """Under which key a row has a list of answers; turns are one answer."""
    key = first_list(row, (*KEYS, "solutions"))
    if key is None or not peek(row, key):
        return None
    turn = isinstance(peek(row, key)[0], dict) and first_key(peek(row, key)[0], ("role", "from"))
    return None if turn and not key.endswith("s") else key


def _answer_key(row: Fields) -> str | None:
    keys = keys_of(row)
    return None if keys is None else keys[1]


def _listed(row: Fields, key: str, origin: Origin) -> Ranking:
    """A ranking of the answers in the list under a key, whatever judges them."""
    question, responses = asked(row), []
    for place, entry in enumerate(row[key]):
        try:
            message = answer(entry, f"{key}[{place}]", question)
        except RowError as error:
            if error.reason != EMPTY:
                raise
            message = Message("assistant", "")
        responses.append(Response(message))
    prompt, given = tuple(question.messages), template_args(row)
    return Ranking(prompt, tuple(responses), tools=question.tools, origin=origin, template_args=given)


def _solved(row: Fields) -> Fields:
    """A row of steps whose labels are left out; it judges its solutions as right, which nobody reads."""
    judged = (*LABELS, *OUTCOMES, "mistake_index")
    fields = {key: value for key, value in dict(row).items() if key.lower() not in judged}
    steps = first_key(row, STEPS)
    if steps and isinstance(row[steps], list):
        fields[steps] = [_text_alone(step) for step in row[steps]]
    several = None if steps else first_list(row, SEVERAL)
    fields[SOLVED[0]] = True if several is None else [True] * len(row[several])
    return _edited(row, fields)


def _text_alone(step: Any) -> Any:
    """A step without its own label."""
    return {key: text for key, text in step.items() if key in TEXTS} if isinstance(step, dict) else step


def _edited(row: Fields, fields: dict[str, Any]) -> Fields:
    """Other fields in place of a row's; what is read of them counts as read of the row."""
    if not isinstance(row, WatchedRow):
        return fields
    edited = WatchedRow(fields)
    edited.taken, edited.rivals = row.taken, row.rivals
    return edited


def as_scored(example: Example, consumes: Consumes) -> Sequence[Example | RowError]:
    """The answers of an example as rankings or, if `consumes` is steps, as solutions in steps; answers without steps
    are cut at blank lines, or at every line if they have none."""
    if consumes == "steps":
        return _cut(example)
    match example:
        case Ranking():
            return [example]
        case Tree():
            return rankings(example)
        case Chat(messages=(*prompt, Message(role="assistant") as last)):
            return [_one(tuple(prompt), last, example)]
        case Steps():
            return [_one(example.prompt, Message("assistant", example.separator.join(example.steps)), example)]
    return [_no_answer(example)]


def _one(prompt: tuple[Message, ...], message: Message, example: Chat | Steps) -> Ranking:
    tools = example.tools if isinstance(example, Chat) else ()
    given = example.template_args
    return Ranking(prompt, (Response(message),), tools=tools, origin=example.origin, template_args=given)


def _cut(example: Example) -> Sequence[Example | RowError]:
    """As `as_scored`, for a model that reads steps. Labels are all the same, so that no step is left out."""
    if isinstance(example, Steps):
        return [replace(example, labels=(1.0,) * len(example.steps), solved=None, soft=True)]
    if isinstance(example, Ranking):
        prompt, answers = example.prompt, [response.message for response in example.responses]
    elif isinstance(example, Chat) and example.messages and example.messages[-1].role == "assistant":
        prompt, answers = example.messages[:-1], [example.messages[-1]]
    else:
        return [_no_answer(example)]
    out: list[Example | RowError] = []
    for message in answers:
        steps, separator = split(message.content)
        if not steps:
            out.append(RowError("no answer", got="an answer without text", expected="steps to score"))
            continue
        labels, given = (1.0,) * len(steps), example.template_args
        solution = Steps(prompt, tuple(steps), labels, None, separator, example.origin, given, soft=True)
        out.append(solution)
    return out


def _no_answer(example: Example) -> RowError:
    got = f"a {type(example).__name__.lower()}"
    if isinstance(example, Chat) and example.messages:
        got = f"a conversation that ends on {example.messages[-1].role}"
    return RowError("no answer", got=got, expected="one to score")
