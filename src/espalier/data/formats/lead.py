"""What stands beside a conversation in columns of its own: a system text, earlier turns, and a context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from espalier.data.columns.contents import decoded
from espalier.data.columns.names import GROUPS
from espalier.data.columns.watched import peek
from espalier.data.formats import transcripts
from espalier.data.formats.common import (
    TOOLS,
    Fields,
    empty_answer,
    first_key,
    has_any,
    shown,
    string,
    tools,
    wrong_type,
)
from espalier.errors import RowError
from espalier.types import Message

SYSTEMS = GROUPS["system"]
CONTEXTS = ("input", "context")
ASKED = ("instruction", "human", "user", "prompt", "question", "query", "input")
ANSWERED = ("output", "assistant", "response", "answer", "completion", "bot", "gpt")
REASONINGS = ("reasoning", "thinking", "reasoning_content", "thinking_trajectories", "Complex_CoT")
SWITCHES = ("on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high")
_LONG = 20
"""Characters from which a context that stands inside the prompt already cannot do so by chance."""

ReadTurns = Callable[[Any, str], list[Message]]


def system_of(row: Fields) -> str:
    """The system text of a row, from one of `SYSTEMS`; empty if it has none. Raises RowError if it has two."""
    if not has_any(row, SYSTEMS):
        return ""
    texts: dict[str, str] = {}
    for key in SYSTEMS:
        text = string(row, (key,), default="")
        if text.strip():
            texts[key] = text
    if len(set(texts.values())) > 1:
        got, field = shown(list(texts.values())), " and ".join(texts)
        raise RowError("two system texts", field=field, got=got, expected="one system text")
    return next(iter(texts.values()), "")


def with_system(row: Fields, messages: list[Message]) -> list[Message]:
    """The messages behind the row's system text, if it has one. Raises RowError if they begin with another one."""
    text = system_of(row)
    if not text:
        return messages
    if not messages or messages[0].role != "system":
        return [Message("system", text), *messages]
    if messages[0].content.strip() != text.strip():
        got = "a system column and a system turn"
        raise RowError("two system turns", field="system", got=got, expected="one", fix="Keep one of them")
    return messages


def with_history(row: Fields, messages: list[Message], read_turns: ReadTurns | None = None) -> list[Message]:
    """The messages behind the row's earlier turns (`history`), whose system turn comes first."""
    earlier = history(row, read_turns)
    if earlier and messages and messages[0].role == "system":
        return [messages[0], *earlier, *messages[1:]]
    return [*earlier, *messages]


def history(row: Fields, read_turns: ReadTurns | None = None) -> list[Message]:
    """The earlier turns of a row, from `history`: pairs of texts, objects of a question and its answer, or, with
    `read_turns`, turns; the JSON of such a list, or a transcript. Raises RowError."""
    pairs = decoded(row.get("history"))
    if pairs is None or pairs == "":
        return []
    if isinstance(pairs, str) and transcripts.turns_of(pairs):
        return transcripts.turns_of(pairs) or []
    expected = "a list of [instruction, response] pairs"
    if not isinstance(pairs, list):
        raise wrong_type("history", pairs, expected)
    if read_turns and pairs and isinstance(pairs[0], dict) and first_key(pairs[0], ("role", "from")):
        return read_turns(pairs, "history")
    messages = []
    for i, pair in enumerate(pairs):
        field = f"history[{i}]"
        if isinstance(pair, dict):
            messages += pair_of(pair, field)
            continue
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise wrong_type(field, pair, "a pair of strings [instruction, response]")
        instruction, response = pair
        if not response.strip():
            raise empty_answer(f"{field}[1]", response)
        messages += [Message("user", instruction), Message("assistant", response)]
    return messages


def is_texts(value: Any) -> bool:
    """Whether a value is a list of two texts and more: the turns of a conversation, the user's first."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)


def alternating(texts: Sequence[str]) -> list[Message]:
    """The turns of plain texts, the first of which is the user's.

    >>> [message.role for message in alternating(["Hi", "Hello!", "Bye"])]
    ['user', 'assistant', 'user']
    """
    return [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]


def is_pair(turn: Any) -> bool:
    """Whether an object holds a question and its answer, two turns at once: {"input": ..., "output": ...}."""
    if not isinstance(turn, dict) or first_key(turn, ("role", "from", "content", "value")):
        return False
    return first_key(turn, ASKED) is not None and first_key(turn, ANSWERED) is not None


def pair_of(turn: Fields, field: str) -> list[Message]:
    """The two turns of an object that holds a question and its answer. Raises RowError."""
    asked, answered = string(turn, ASKED, f"{field}."), string(turn, ANSWERED, f"{field}.")
    if not answered.strip():
        raise empty_answer(f"{field}.{first_key(turn, ANSWERED)}", answered)
    return [Message("user", asked), Message("assistant", answered)]


def answer_of(row: Fields, text: str) -> Message:
    """The assistant's message of a text, with the reasoning that stands in a column of its own: the first of REASONINGS
    that has one. Others are left unread, so that they are listed or refuse the source."""
    for name in REASONINGS:
        # Asked for one by one: reasoning under a further name is not the same.
        key = first_key(row, (name,))
        reasoning = None if key is None else _reasoning(peek(row, key))
        if key is None or reasoning is None:
            continue
        # Looked up, so that it counts as read.
        row.get(key)
        return Message("assistant", text, reasoning=None if reasoning.strip() in text else reasoning)
    return Message("assistant", text)


def _reasoning(value: Any) -> str | None:
    """The text of a reasoning, or of a list of one; None for a switch, several attempts and what else is no text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value.strip() or value.strip().lower() in SWITCHES:
        return None
    return value


# ---------------------------------------------------------------------------------------------------------- contexts


def plain_prompt(instruction: str, context: str) -> str:
    """The instruction, then the input on a new line, either of which may be empty."""
    return "\n".join(part for part in (instruction, context) if part)


def context_of(row: Fields, asked: str | None, field: str = "") -> str:
    """The texts of `input` and `context` beside a prompt that stands under `asked`, one to a line; empty without any.
    `field` is the place of `row` in the whole row, with a dot at the end. Raises RowError."""
    if not has_any(row, CONTEXTS):
        return ""
    texts: list[str] = []
    for key in CONTEXTS:
        name = first_key(row, (key,))
        if name is None or name == asked:
            continue
        text = passages(row[name], f"{field}{name}")
        if text.strip() and text not in texts:
            texts.append(text)
    return "\n".join(texts)


def is_passages(value: Any) -> bool:
    """Whether a value is a text, or a list of texts."""
    if isinstance(value, list):
        return all(isinstance(text, str) for text in value)
    return isinstance(value, str)


def passages(value: Any, field: str) -> str:
    """A text, or the texts of a list, one to a line. Raises RowError."""
    if not is_passages(value):
        error = wrong_type(field, value, "a text, or a list of texts")
        error.fix = (
            f"Read a part of it with --columns context={field}.PART, or leave it out with --ignore-columns {field}"
        )
        raise error
    return value if isinstance(value, str) else "\n".join(value)


def with_context(text: str, context: str) -> str:
    """A prompt with its context on a new line, unless the prompt holds it already."""
    if not context:
        return text
    inside = context.strip() == text.strip() or (len(context) >= _LONG and context.strip() in text)
    return text if inside else plain_prompt(text, context)


def turns_with_context(messages: Sequence[Message], context: str) -> list[Message]:
    """The messages with a context in the first user turn, which the whole conversation is about."""
    result = list(messages)
    if context:
        for i, message in enumerate(result):
            if message.role == "user":
                result[i] = replace(message, content=with_context(message.content, context))
                break
    return result


# ------------------------------------------------------------------------------------------------------------- tools


def tools_of(row: Fields, turns: Any = (), field: str = "") -> tuple[dict[str, Any], ...]:
    """The functions on offer: the row's own, or those of a system message among its `turns` (a list of objects).

    Raises RowError, also if both have some and these differ.
    """
    offered = tools(row)
    for i, turn in enumerate(turns if isinstance(turns, list) else ()):
        if not isinstance(turn, dict) or first_key(turn, TOOLS) is None:
            continue
        own = tools(turn, f"{field}[{i}].")
        if own and offered and own != offered:
            expected = "one list of functions"
            raise RowError(
                "two lists of tools",
                field=f"{field}[{i}]",
                got=f"{len(own)} functions beside others",
                expected=expected,
                fix="Keep one of them",
            )
        offered = offered or own
    return offered
