"""ShareGPT: `conversations` of `{"from": ..., "value": ...}`, with function calls and observations."""

from __future__ import annotations

import json
from typing import Any

from espalier.data.formats.common import (
    Fields,
    calls,
    missing,
    role_of,
    string,
    tool_call_id,
    weight,
    wrong_type,
)
from espalier.data.formats.format import Format
from espalier.data.formats.lead import alternating, is_pair, is_texts, pair_of
from espalier.data.formats.messages import ROLES as MESSAGE_ROLES
from espalier.data.formats.messages import conversation, decoded_turns, message_list, turns_key
from espalier.data.formats.messages import looks as looks_like_messages
from espalier.types import Chat, Consumes, Message, Origin, Role

CALLS = ("function_call", "tool_call")
ROLES: dict[str, Role] = {
    **MESSAGE_ROLES,
    # Assistants whose conversations people shared.
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has turns that are not OpenAI messages."""
    return turns_key(row) is not None and not looks_like_messages(row, consumes)


def read_sharegpt(row: Fields, origin: Origin) -> Chat:
    """A Chat from `conversations` (or `conversation`, `messages` ...), with what stands beside it as `read_messages`
    takes it. Raises RowError.

    A `function_call` turn becomes an assistant turn that has tool calls and no content; a `gpt` turn right after it
    stays a turn of its own. An object of a question and its answer ({"input": ..., "output": ...}) is two turns.
    """
    key = turns_key(row)
    if key is None:
        raise missing("conversations", row, "conversations")
    return conversation(row, key, turn_list, origin)


def turn_list(value: Any, field: str) -> list[Message]:
    """The messages of a list, without a check of their order."""
    value = decoded_turns(value, field)
    if not isinstance(value, list):
        raise wrong_type(field, value, "a list of turns")
    if is_texts(value):
        return alternating(value)
    messages = []
    for i, turn in enumerate(value):
        here = f"{field}[{i}]"
        messages += pair_of(turn, here) if is_pair(turn) else [_turn(turn, here)]
    return messages


def turns(value: Any, field: str) -> list[Message]:
    """Messages of a list in either style, `role` and `content` or `from` and `value`, in unchecked order."""
    value = decoded_turns(value, field)
    if isinstance(value, list) and any(
        isinstance(turn, dict) and (turn.get("from") or is_pair(turn)) for turn in value
    ):
        return turn_list(value, field)
    return message_list(value, field)


def _turn(row: Any, field: str) -> Message:
    if not isinstance(row, dict):
        raise wrong_type(field, row, "an object with from and value")
    name = string(row, ("from",), f"{field}.")
    role = role_of(name, ROLES, f"{field}.from")
    value = row.get("value")
    if len(row) == 2 and isinstance(value, str) and name.lower() not in CALLS:
        # As most turns are: nothing else needs to be looked for.
        return Message(role, value)
    own_weight = weight(row, field)
    if value is None:
        raise missing(f"{field}.value", row, "value")
    if name.lower() in CALLS:
        return Message(role, "", tool_calls=calls(value, f"{field}.value"), weight=own_weight)
    answered = tool_call_id(row, field) if role == "tool" else None
    if role == "tool" and isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = string(row, ("value",), f"{field}.")
    return Message(role, text, weight=own_weight, tool_call_id=answered)


FORMAT = Format("sharegpt", read_sharegpt, looks)
