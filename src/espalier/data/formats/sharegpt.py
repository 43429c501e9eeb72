"""ShareGPT: `conversations` of `{"from": ..., "value": ...}`, with function calls and observations."""

from __future__ import annotations

import json
from typing import Any

from espalier.data.formats.common import (
    Fields,
    calls,
    check_turns,
    first_key,
    missing,
    role_of,
    string,
    tool_call_id,
    tools,
    weight,
    wrong_type,
)
from espalier.data.formats.format import Format
from espalier.data.formats.messages import KEYS
from espalier.data.formats.messages import looks as looks_like_messages
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Message, Origin, Role

CALLS = ("function_call", "tool_call")
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    # Assistants whose conversations people shared.
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
}


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has turns that are not OpenAI messages."""
    return first_key(row, KEYS) is not None and not looks_like_messages(row, consumes)


def read_sharegpt(row: Fields, origin: Origin) -> Chat:
    """A Chat from `conversations` (or `conversation`, `messages`), with optional `system` and `tools`. Raises RowError.

    A `function_call` turn becomes an assistant turn that has tool calls and no content; a `gpt` turn right after it
    stays a turn of its own.
    """
    key = first_key(row, ("conversations", *KEYS))
    if key is None:
        raise missing("conversations", row, "conversations")
    messages = turn_list(row[key], key)
    system = string(row, ("system",), default="")
    if system:
        if messages and messages[0].role == "system":
            got = "a system column and a system turn"
            raise RowError("two system turns", field="system", got=got, expected="one", fix="Keep one of them")
        # Checked without the system turn first, so that an error counts turns as the file does.
        check_turns(messages, key)
        messages.insert(0, Message("system", system))
    return Chat(check_turns(messages, key), tools(row), origin)


def turn_list(value: Any, field: str) -> list[Message]:
    """The messages of a list, without a check of their order."""
    if not isinstance(value, list):
        raise wrong_type(field, value, "a list of turns")
    return [_turn(turn, f"{field}[{i}]") for i, turn in enumerate(value)]


def _turn(row: Any, field: str) -> Message:
    if not isinstance(row, dict):
        raise wrong_type(field, row, "an object with from and value")
    name = string(row, ("from",), f"{field}.")
    role = role_of(name, ROLES, f"{field}.from")
    own_weight = weight(row, field)
    value = row.get("value")
    if value is None:
        raise missing(f"{field}.value", row, "value")
    if name in CALLS:
        return Message(role, "", tool_calls=calls(value, f"{field}.value"), weight=own_weight)
    answered = tool_call_id(row, field) if role == "tool" else None
    if role == "tool" and isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = string(row, ("value",), f"{field}.")
    return Message(role, text, weight=own_weight, tool_call_id=answered)


FORMAT = Format("sharegpt", read_sharegpt, looks)
