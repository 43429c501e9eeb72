"""What the formats of judged answers share: the prompt, an answer, a score, ranks, and what makes a Ranking sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from espalier.data.files.json_rows import clipped
from espalier.data.formats.common import (
    Fields,
    blank,
    check_turns,
    empty_answer,
    finite,
    first_key,
    shown,
    string,
    wrong_type,
)
from espalier.data.formats.messages import decoded_turns
from espalier.data.formats.prompt import Asked
from espalier.data.formats.sharegpt import turns
from espalier.data.formats.transcripts import stripped
from espalier.data.render.trees import rank_error
from espalier.errors import RowError
from espalier.types import Message, Origin, Ranking, Response

Scale = tuple[float, float]
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"),
    ("preferred_output", "non_preferred_output"),
    ("response", "rejected_response"),
    ("response_j", "response_k"),
)
TEXTS = ("text", "content", "response", "completion", "answer", "output", "value")
WORDS = {"good": True, "bad": False, "true": True, "false": False}
NUMBER = "a number, or null if not judged"


def pair_keys(row: Fields) -> tuple[str, str] | None:
    """Under which keys a row has its two answers, the preferred one first; None if it has no pair."""
    for chosen, rejected in PAIRS:
        keys = first_key(row, (chosen,)), first_key(row, (rejected,))
        if keys[0] and keys[1]:
            return keys[0], keys[1]
    return None


def answer(value: Any, field: str, prompt: Asked | None = None) -> Message:
    """An assistant message from a text, a message, or a list of one. Raises RowError, also if it is empty.

    Of a `prompt` that is a transcript the answer goes on: space around it is not part of it.
    """
    value = decoded_turns(value, field)
    if isinstance(value, str):
        if prompt and prompt.transcript:
            value = stripped(value, prompt.messages)
        return check_answer(Message("assistant", value), field)
    if isinstance(value, dict):
        if not first_key(value, ("role", "from")):
            return answer(string(value, TEXTS, f"{field}."), field, prompt)
        value = [value]
    messages = turns(value, field)
    if not messages:
        raise RowError("no answer", field=field, got="0 turns", expected="one assistant turn")
    if len(messages) > 1:
        got = f"{len(messages)} turns"
        raise RowError("answer of several turns", field=field, got=got, expected="one assistant turn")
    return check_answer(messages[0], field)


def check_answer(message: Message, field: str) -> Message:
    """The message itself. Raises RowError if it is of another role or empty."""
    if message.role != "assistant":
        raise RowError("answer of another role", field=field, got=f"role {message.role}", expected="role assistant")
    if not message.content.strip() and not message.tool_calls:
        raise empty_answer(field, message.content)
    return message


# ------------------------------------------------------------------------------------------------------- judgements


def scale_of(row: Fields) -> Scale | None:
    """The least and the highest score that a row's own `scale` allows, None if it has no scale."""
    scale = row.get("scale")
    if scale is None:
        return None
    bounds = []
    if isinstance(scale, list):
        bounds = [score(bound, f"scale[{i}]") for i, bound in enumerate(scale)]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None or bounds[0] >= bounds[1]:
        raise wrong_type("scale", scale, "a list of the least and the highest score, such as [1, 10]")
    return bounds[0], bounds[1]


def score(value: Any, field: str, scale: Scale | None = None) -> float | None:
    """A finite number inside `scale`, or None for null (not judged). Raises RowError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(field, value, NUMBER)
    number = finite(value)
    if number is None:
        raise RowError("score not finite", field=field, got=clipped(str(value)), expected=NUMBER)
    if scale and not scale[0] <= number <= scale[1]:
        expected = f"a score from {scale[0]:g} to {scale[1]:g}"
        fix = "Write null for an answer that is not judged"
        raise RowError("score out of range", field=field, got=f"{number:g}", expected=expected, fix=fix)
    return number


def is_word(value: Any) -> bool:
    """Whether a value is one of the words that stand for true and false."""
    return isinstance(value, str) and value.strip().lower() in WORDS


def flag(value: Any, field: str) -> bool | None:
    """True or false, which may be written as 1 and 0 or as good and bad, or None for null. Raises RowError for anything
    else."""
    if value is None or isinstance(value, bool):
        return value
    if is_word(value):
        return bool(WORDS[value.strip().lower()])
    if not isinstance(value, int | float) or value not in (0, 1):
        raise wrong_type(field, value, "true or false, or good or bad")
    return bool(value)


def ranks(values: Sequence[Any], field: str) -> list[int | None]:
    """Ranks with 0 for the best, from ranks that count from 0 or from 1; None for null.

    >>> ranks([2, 1, 1], "ranks"), ranks([0, None, 1], "ranks")
    ([1, 0, 0], [0, None, 1])

    Raises RowError, also for ranks with gaps.
    """
    counted: list[int | None] = []
    for i, value in enumerate(values):
        whole = isinstance(value, int | float) and not isinstance(value, bool) and is_whole(value)
        if value is not None and not (whole and value >= 0):
            raise wrong_type(f"{field}[{i}]", value, "a whole number from 0 (the best) up, or null")
        counted.append(None if value is None else int(value))
    known = [rank for rank in counted if rank is not None]
    if known and min(known) == 1:
        counted = [None if rank is None else rank - 1 for rank in counted]
    error = rank_error(counted, field)
    if error:
        raise error
    return counted


def is_whole(value: float) -> bool:
    """Whether a number is a whole one, infinity and nan not being any."""
    return isinstance(value, int) or value.is_integer()


def listed(row: Fields, key: str, count: int) -> list[Any]:
    """The list under `key`, one entry for each of `count` responses. Raises RowError if it has another length."""
    values = row[key]
    if not isinstance(values, list):
        raise wrong_type(key, values, "a list with one entry for each response")
    if len(values) != count:
        got = f"{len(values)} for {count} responses"
        raise RowError("another number of judgements", field=key, got=got, expected="one for each response")
    return values


# ---------------------------------------------------------------------------------------------------------- rankings


def ranking(
    prompt: Sequence[Message],
    responses: Sequence[Response],
    origin: Origin,
    *,
    field: str,
    dimensions: tuple[str, ...] = (),
    tools: tuple[dict[str, Any], ...] = (),
) -> Ranking:
    """A Ranking whose prompt can be answered and whose judgements can be followed.

    Raises RowError if the prompt is empty or does not end on a user turn or a tool result, if nothing is judged, if all
    of several responses are identical, and if ranks prefer one response and its only score another.
    """
    check_prompt(prompt)
    if not any(is_judged(response) for response in responses):
        got = f"{len(responses)} response{'' if len(responses) == 1 else 's'} without rank, score or label"
        raise RowError("no judgement", field=field, got=got, expected="at least one that is judged")
    if len(responses) > 1 and len({_text(response.message) for response in responses}) == 1:
        got = f"{len(responses)} responses of the same text: {shown(responses[0].message.content)}"
        raise RowError("identical responses", field=field, got=got, expected="two that differ")
    _check_ranks_against_scores(responses, field)
    return Ranking(tuple(prompt), tuple(responses), dimensions, tools, origin)


def is_judged(response: Response) -> bool:
    """Whether a response has a rank, a label or a score."""
    if response.rank is not None or response.good is not None:
        return True
    return any(score is not None for score in response.scores)


def _check_ranks_against_scores(responses: Sequence[Response], field: str) -> None:
    """Raise RowError if a response of a better rank has a lower score. Several scores may weigh up either way."""
    for i, better in enumerate(responses):
        for j, worse in enumerate(responses):
            if better.rank is None or worse.rank is None or better.rank >= worse.rank:
                continue
            if len(better.scores) != 1 or len(worse.scores) != 1:
                continue
            (high,), (low,) = better.scores, worse.scores
            if high is not None and low is not None and high < low:
                got = f"rank {better.rank} with score {high:g} and rank {worse.rank} with score {low:g}"
                fix = "Is a lower score better? Negate the scores, or keep the ranks alone"
                places = f"{field}[{i}], [{j}]"
                raise RowError("ranks contradict scores", field=places, got=got, expected="one order", fix=fix)


def check_prompt(prompt: Sequence[Message]) -> None:
    """Raise RowError for a prompt that is empty, or after which no assistant turn may begin."""
    if not prompt:
        raise RowError("empty prompt", field="prompt", got="no turns", expected="a text to answer")
    last = prompt[-1]
    if last.role in ("user", "system") and not last.content.strip():
        raise blank("empty prompt", "prompt", last.content, "a text to answer")
    if last.role not in ("user", "tool"):
        got = f"the role {last.role} at the end"
        raise RowError("prompt without a question", field="prompt", got=got, expected="a user turn at the end")
    # A prompt is sound if the conversation that an answer makes of it is.
    check_turns((*prompt, Message("assistant", "answer")), "prompt")


def _text(message: Message) -> tuple[str, str | None, str]:
    """Everything that a message says: two responses of equal text are identical."""
    return message.content, message.reasoning, repr(message.tool_calls)


def common_run(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many turns at the start two conversations have in common, whatever their loss weights."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if replace(left, weight=None) != replace(right, weight=None):
            break
        count += 1
    return count


def split_pair(chosen: Sequence[Message], rejected: Sequence[Message], field: str) -> tuple[Message, ...]:
    """The prompt that two whole conversations share: all turns but the last.

    Raises RowError if they are the same, or if what follows the turns they share is not one turn each.
    """
    run = common_run(chosen, rejected)
    left, right = len(chosen) - run, len(rejected) - run
    if left == right == 0:
        got = f"the same {run} turns twice"
        raise RowError("identical responses", field=field, got=got, expected="answers that differ")
    if (left, right) != (1, 1):
        got = f"{run} turns in common, then {left} in chosen and {right} in rejected"
        raise RowError("prompts differ", field=field, got=got, expected="one answer each")
    return tuple(chosen[:run])
