"""What the formats of judged answers share: the prompt, an answer, a score, ranks, and what makes a Ranking sound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from espalier.data.formats.alpaca import INPUTS, history
from espalier.data.formats.common import (
    Fields,
    check_turns,
    empty_answer,
    first_key,
    missing,
    shown,
    string,
    wrong_type,
)
from espalier.data.formats.messages import KEYS as TURNS
from espalier.data.formats.messages import message_list
from espalier.data.formats.prompt import PROMPTS
from espalier.data.formats.sharegpt import turn_list
from espalier.data.render.trees import rank_error
from espalier.errors import RowError
from espalier.types import Message, Origin, Ranking, Response

Scale = tuple[float, float]
WORDS = {"good": True, "bad": False, "true": True, "false": False}
TEXTS = ("text", "content", "response", "completion", "answer", "output", "value")


def turns(value: Any, field: str) -> list[Message]:
    """Messages of a list in either style, `role` and `content` or `from` and `value`, in unchecked order."""
    if isinstance(value, list) and any(isinstance(turn, dict) and "from" in turn for turn in value):
        return turn_list(value, field)
    return message_list(value, field)


def prompt_of(row: Fields) -> list[Message]:
    """What is to be answered: `prompt` (`question`, `query`), a text or turns; `instruction` with its `input` and
    `history`; or the turns of `messages` (`conversations`). A text in `system` stands before it.

    Raises RowError where there is none.
    """
    system = string(row, ("system",), default="")
    found = [Message("system", system)] if system else []
    key = first_key(row, (*PROMPTS, "instruction", *TURNS))
    if key is None:
        raise missing("prompt", row, " or ".join((*PROMPTS, "instruction", *TURNS)))
    if isinstance(row[key], list):
        found += turns(row[key], key)
    elif key == "instruction":
        parts = (string(row, ("instruction",)), string(row, INPUTS, default=""))
        found += [*history(row), Message("user", "\n".join(part for part in parts if part))]
    else:
        found.append(Message("user", string(row, (key,))))
    return found


def answer(value: Any, field: str) -> Message:
    """An assistant message from a text, a message, or a list of one. Raises RowError, also where it is empty."""
    if isinstance(value, str):
        return check_answer(Message("assistant", value), field)
    if isinstance(value, dict) and not {"role", "from"} & value.keys():
        return check_answer(Message("assistant", string(value, TEXTS, f"{field}.")), field)
    found = turns([value] if isinstance(value, dict) else value, field)
    if len(found) != 1:
        got, expected = f"{len(found)} turns", "one assistant turn"
        raise RowError("answer of several turns" if found else "no answer", field=field, got=got, expected=expected)
    return check_answer(found[0], field)


def check_answer(message: Message, field: str) -> Message:
    """The message itself. Raises RowError where it is of another role or empty."""
    if message.role != "assistant":
        raise RowError("answer of another role", field=field, got=f"role {message.role}", expected="role assistant")
    if not message.content.strip() and not message.tool_calls:
        raise empty_answer(field, message.content)
    return message


# ------------------------------------------------------------------------------------------------------- judgements


def scale_of(row: Fields) -> Scale | None:
    """The least and the highest score that a row's own `scale` allows, None where it names none."""
    scale = row.get("scale")
    if scale is None:
        return None
    bounds = [score(bound, f"scale[{i}]") for i, bound in enumerate(scale)] if isinstance(scale, list) else []
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None or bounds[0] >= bounds[1]:
        raise wrong_type("scale", scale, "a list of the least and the highest score, such as [1, 10]")
    return bounds[0], bounds[1]


def score(value: Any, field: str, scale: Scale | None = None) -> float | None:
    """A finite number inside `scale`, or None for null: nobody judged. Raises RowError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(field, value, "a number, or null where nobody judged")
    if not math.isfinite(value):
        raise RowError(
            "score not finite", field=field, got=str(value), expected="a number, or null where nobody judged"
        )
    if scale and not scale[0] <= value <= scale[1]:
        expected = f"a score from {scale[0]:g} to {scale[1]:g}"
        fix = "Write null where nobody judged"
        raise RowError("score out of range", field=field, got=f"{value:g}", expected=expected, fix=fix)
    return float(value)


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
    """
    found: list[int | None] = []
    for i, value in enumerate(values):
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == math.floor(value)
        if value is not None and not (whole and value >= 0):
            raise wrong_type(f"{field}[{i}]", value, "a whole number from 0 (the best) up, or null")
        found.append(None if value is None else int(value))
    first = min((rank for rank in found if rank is not None), default=0)
    shift = 1 if first == 1 else 0
    made = [None if rank is None else rank - shift for rank in found]
    if error := rank_error(made, field):
        raise error
    return made


def listed(row: Fields, key: str, count: int) -> list[Any]:
    """The list under `key`, one entry for each of `count` responses. Raises RowError where it has another length."""
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

    Raises RowError where the prompt is empty or does not end on a user turn or a tool result, where nothing is judged,
    where all of several responses are identical, and where ranks prefer one response and its only score another.
    """
    check_prompt(prompt)
    judged = [r for r in responses if r.rank is not None or r.good is not None or any(s is not None for s in r.scores)]
    if not judged:
        got = f"{len(responses)} response{'' if len(responses) == 1 else 's'} without rank, score or label"
        raise RowError("no judgement", field=field, got=got, expected="at least one that is judged")
    if len(responses) > 1 and len({said(r.message) for r in responses}) == 1:
        got = f"{len(responses)} responses of the same text: {shown(responses[0].message.content)}"
        raise RowError("identical responses", field=field, got=got, expected="two that differ")
    for i, better in enumerate(responses):
        for j, worse in enumerate(responses):
            if better.rank is None or worse.rank is None or better.rank >= worse.rank:
                continue
            if len(better.scores) == len(worse.scores) == 1:
                (high,), (low,) = better.scores, worse.scores
                if high is not None and low is not None and high < low:
                    got = f"rank {better.rank} with score {high:g} and rank {worse.rank} with score {low:g}"
                    fix = "Is a lower score better? Negate the scores, or keep the ranks alone"
                    where = f"{field}[{i}], [{j}]"
                    raise RowError("ranks contradict scores", field=where, got=got, expected="one order", fix=fix)
    return Ranking(tuple(prompt), tuple(responses), dimensions, tools, origin)


def check_prompt(prompt: Sequence[Message]) -> None:
    """Raise RowError for a prompt that is empty, or after which no assistant turn may begin."""
    last = prompt[-1] if prompt else None
    if last is None or (last.role in ("user", "system") and not last.content.strip()):
        got = f"content {last.content[:20]!r}" if last else "no turns"
        raise RowError("empty prompt", field="prompt", got=got, expected="a text to answer")
    if last.role not in ("user", "tool"):
        got = f"the role {last.role} at the end"
        raise RowError("prompt without a question", field="prompt", got=got, expected="a user turn at the end")
    check_turns((*prompt, Message("assistant", "answer")), "prompt")


def said(message: Message) -> tuple[str, str | None, str]:
    """What a message says, by which two are the same."""
    return message.content, message.reasoning, repr(message.tool_calls)


def common_run(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many turns at the start two conversations have in common, whatever their loss weights."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if replace(a, weight=None) != replace(b, weight=None):
            break
        count += 1
    return count


def split_pair(chosen: Sequence[Message], rejected: Sequence[Message], field: str) -> tuple[Message, ...]:
    """The prompt that two whole conversations share: all turns but the last.

    Raises RowError where they are the same, or where what follows the turns they share is not one turn each.
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
