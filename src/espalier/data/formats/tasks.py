"""What the formats of tasks share: the prompt of a row, its final answer, and the columns that are left to rewards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from espalier.data.columns.contents import decoded
from espalier.data.columns.watched import WatchedRow, peek, plain
from espalier.data.formats.common import Fields, blank, first_key, missing, string, wrong_type
from espalier.data.formats.lead import (
    is_passages,
    passages,
    tools_of,
    turns_with_context,
    with_history,
    with_system,
)
from espalier.data.formats.messages import decoded_turns, turns_key
from espalier.data.formats.prompt import QUESTIONS, Asked, asked
from espalier.data.formats.sharegpt import turns
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Example, Message, Origin, Ranking, Steps, Task

PROMPTS = (*QUESTIONS, "instruction")
INPUTS = ("input", "inputs")
"""Prompts if nothing else is; beside a prompt, what it is about."""
TESTS = ("test_list", "tests")
"""Beside one of these a `text` is what a program is to do."""
ANSWERS = ("answer", "final_answer", "ground_truth", "expected_answer", "reference_answer", "gold")
SOLUTION = "solution"
EXPECTED = (
    "a prompt (question, problem, instruction, messages), and beside it answer, verifier and facts, choices with their "
    "answer, or instruction_id_list with kwargs"
)
BEGUN = "prompts that end in an assistant turn, with which the policy goes on"
CUT = "last assistant turns left out, which the policy answers itself"
MARK = "####"
_BOXED = re.compile(r"\\f?boxed\s*(?=\{)")


def has_prompt(row: Fields, consumes: Consumes) -> bool:
    """Whether a run answers tasks and a row has a prompt."""
    if consumes != "task" or isinstance(peek(row, "instances"), list):
        return False
    if turns_key(row) is not None:
        return True
    key = first_key(row, (*PROMPTS, *INPUTS))
    if key is not None:
        value = peek(row, key)
        return isinstance(value, str | list) or (isinstance(value, dict) and "messages" in value)
    return _is_program(row)


def _is_program(row: Fields) -> bool:
    return isinstance(peek(row, "text"), str) and first_key(row, TESTS) is not None


def task(
    row: Fields,
    origin: Origin,
    *,
    answer: str = "",
    answers: Sequence[str] = (),
    verifier: str = "",
    facts: dict[str, Any] | None = None,
    asks: Asked | None = None,
) -> Task:
    """The task of a row. What its own `verifier` and `facts` say goes before `verifier`, and is added to `facts`.
    `answers` are all that count as right, in place of `answer`: the first is the task's, and if there are several all
    of them are its fact `answers`. `asks` is its prompt, that of `question` if None. Raises RowError."""
    asks = asks or question(row)
    several = {"answers": list(answers)} if len(answers) > 1 else {}
    named = string(row, ("verifier",), default="").strip()
    return Task(
        checked(asks.messages),
        answer=answers[0] if answers else answer,
        verifier=named or verifier,
        facts={**several, **(facts or {}), **_facts(row)},
        tools=asks.tools,
        origin=origin,
    )


def _facts(row: Fields) -> dict[str, Any]:
    value = row.get("facts")
    if value is None or value == "":
        return {}
    value = decoded(value)
    if not isinstance(value, dict):
        raise wrong_type("facts", value, "an object, or its JSON")
    return dict(json_value(value))


# ------------------------------------------------------------------------------------------------------------ prompts


def question(row: Fields) -> Asked:
    """The prompt of a row: a text or turns under one of PROMPTS, else the turns of a conversation without the last
    assistant's, else an input. With a system text, earlier turns, a context and, before it, a `Body` beside it.

    Turns under one of PROMPTS stay as they are: the policy goes on with an assistant's at their end. Raises RowError.
    """
    if first_key(row, PROMPTS) is not None:
        asks = asked(row, PROMPTS)
        return asks._replace(messages=_with_body(row, asks.messages))
    key = turns_key(row)
    if key is not None:
        listed = decoded_turns(row[key], key)
        messages = turns(listed, key)
        if is_passages(peek(row, "context")):
            messages = turns_with_context(messages, passages(row["context"], "context"))
        messages = with_system(row, with_history(row, messages, turns))
        return Asked(cut(messages, key), tools_of(row, listed, key), False)
    if first_key(row, INPUTS) is not None:
        return asked(row, INPUTS)
    if _is_program(row):
        return asked(row, ("text",))
    raise missing(PROMPTS[0], row, " or ".join((*PROMPTS, "messages")))


def _with_body(row: Fields, messages: list[Message]) -> list[Message]:
    """The messages with the story of a word problem before its question, if it stands in a column of its own."""
    key = first_key(row, ("body",))
    if key is None or not isinstance(peek(row, key), str) or messages[-1].role != "user":
        return messages
    body = row[key].strip()
    last = messages[-1]
    return [*messages[:-1], Message("user", f"{body} {last.content}".strip())]


def cut(messages: Sequence[Message], field: str) -> list[Message]:
    """The messages without the assistant turns at their end. Raises RowError if nothing is left."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    if not end:
        got = "assistant turns alone" if messages else "an empty list"
        raise RowError("no prompt", field=field, got=got, expected="a turn to answer")
    return list(messages[:end])


def remark_of(row: Fields) -> str:
    """What `question` does with an assistant turn at the end of a row: CUT, BEGUN, or empty if there is none."""
    key = first_key(row, PROMPTS)
    remark = CUT if key is None else BEGUN
    key = key or turns_key(row)
    value = None if key is None else plain(decoded_turns(peek(row, key), key))
    if isinstance(value, dict):
        value = value.get("messages")
    if key is None or not isinstance(value, list):
        return ""
    messages = turns(value, key)
    return remark if messages and messages[-1].role == "assistant" else ""


def checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, if they are something to answer; raise RowError otherwise.

    Refused: no turn, a tool result that follows neither an assistant turn nor another result, and a last assistant
    turn with tool calls, reasoning or no text, with which nobody could go on.
    """
    if not messages:
        raise RowError("no prompt", field="prompt", got="no turn", expected="a turn to answer")
    previous = ""
    for i, message in enumerate(messages):
        if message.role == "tool" and previous not in ("assistant", "tool"):
            got = "a tool result " + (f"after a {previous} turn" if previous else "at the start")
            raise RowError("tool result without a call", field=f"prompt[{i}]", got=got, expected="a call before it")
        previous = message.role
    last = messages[-1]
    if last.role == "assistant" and (last.tool_calls or last.reasoning or not last.content):
        got = "tool calls" if last.tool_calls else "reasoning" if last.reasoning else "no text"
        expected = "text alone, which the policy goes on with"
        raise RowError("assistant turn to go on with", field=f"prompt[{len(messages) - 1}]", got=got, expected=expected)
    if last.role == "user" and not last.content.strip():
        raise blank("empty prompt", "prompt", last.content, "a text to answer")
    return tuple(messages)


# ------------------------------------------------------------------------------------------------------------ answers


def answers_of(row: Fields) -> list[str]:
    """The final answers of a row, of which each is right; empty if it has none: under the first of ANSWERS that has
    one, in `reward_model.ground_truth`, or in a worked solution that marks it (`final`). A list has several, equal ones
    once. Raises RowError."""
    for name in ANSWERS:
        key = first_key(row, (name,))
        if key is None:
            continue
        texts = all_worded(peek(row, key), key)
        if texts:
            row.get(key)  # looked up, so that it counts as read
            return list(dict.fromkeys(final(text) or text for text in texts))
    graded = peek(row, "reward_model")
    if isinstance(graded, dict) and peek(graded, "ground_truth") is not None:
        return all_worded(row["reward_model"]["ground_truth"], "reward_model.ground_truth")
    key = first_key(row, (SOLUTION,))
    solution = peek(row, key) if key is not None else None
    marked = final(solution) if isinstance(solution, str) else ""
    if marked and key is not None:
        row.get(key)
    return [marked] if marked else []


def all_worded(value: Any, field: str) -> list[str]:
    """The answers of a value, each as `worded`: those of a list one by one, empty ones left out. Raises RowError.

    >>> all_worded(["7", 7.0, "seven"], "answer"), all_worded("", "answer")
    (['7', 'seven'], [])
    """
    if isinstance(value, list) and value:
        texts = [worded(entry, f"{field}[{place}]") for place, entry in enumerate(value)]
    else:
        texts = [worded(value, field)]
    return list(dict.fromkeys(text for text in texts if text))


def worded(value: Any, field: str) -> str:
    """An answer as text: a whole number without its `.0`, true and false in small letters. Raises RowError.

    >>> worded(145.0, "answer"), worded(" 1/2 ", "answer"), worded(True, "answer")
    ('145', '1/2', 'true')
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise wrong_type(field, value, "a text or a number, or a list of them")


def final(text: str) -> str:
    """What a worked solution marks as its answer: the rest of the line behind the last `####`, else what the last
    `\\boxed{}` holds; empty if it marks none.

    >>> final("3+4=7\\n#### 7"), final("So $x = \\\\boxed{\\\\frac{1}{2}}$."), final("It is 7.")
    ('7', '\\\\frac{1}{2}', '')
    """
    _, mark, behind = text.rpartition(MARK)
    if mark:
        return behind.strip().split("\n")[0].strip()
    places = [match.end() for match in _BOXED.finditer(text)]
    return _braced(text, places[-1]) if places else ""


def _braced(text: str, start: int) -> str:
    """What stands in the braces that open at `start`; empty if they are never closed."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "{" and text[place - 1] != "\\":
            depth += 1
        elif text[place] == "}" and text[place - 1] != "\\":
            depth -= 1
            if not depth:
                return text[start + 1 : place].strip()
    return ""


# ------------------------------------------------------------------------------------------- rows as a run answers them


def as_task(example: Example) -> Task:
    """The prompt of an example without its answer. Raises RowError for one without a prompt."""
    match example:
        case Task():
            return example
        case Chat():
            return _bare(cut(example.messages, "messages"), example, example.tools)
        case Ranking():
            return _bare(example.prompt, example, example.tools)
        case Steps():
            return _bare(example.prompt, example)
    got = f"a {type(example).__name__.lower()}"
    raise RowError("no prompt", got=got, expected="a prompt to answer", fix="Name it with --columns prompt=COLUMN")


def _bare(messages: Sequence[Message], example: Chat | Ranking | Steps, tools: tuple[dict[str, Any], ...] = ()) -> Task:
    return Task(checked(messages), tools=tools, origin=example.origin, template_args=example.template_args)


def unread_columns(row: WatchedRow, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a row that no format read, by name, as JSON; null ones and those in `ignored` are left out."""
    columns = {}
    for key, value in dict.items(row):
        if key not in row.taken and key not in ignored and value is not None:
            columns[key] = json_value(value)
    return columns


def json_value(value: Any) -> Any:
    """A value as JSON holds it: dates and other values of tables are texts.

    >>> import datetime
    >>> json_value({"day": datetime.date(2024, 7, 26), "n": (1, 2)})
    {'day': '2024-07-26', 'n': [1, 2]}
    """
    return json.loads(json.dumps(plain(value), default=str))
