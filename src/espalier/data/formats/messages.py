"""OpenAI messages: roles with content that is a string or a list of typed blocks, tool calls, reasoning and weights."""

from __future__ import annotations

import json
from typing import Any

from espalier.data.formats.common import (
    Fields,
    calls,
    check_turns,
    first_key,
    missing,
    shown,
    string,
    tools,
    weight,
    wrong_type,
)
from espalier.errors import RowError, nearest
from espalier.types import Chat, Message, Origin, Role

KEYS = ("messages", "conversation", "conversations")
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXT = ("text", "output_text", "input_text")
_REASONING = ("reasoning", "thinking")
_CALL = ("tool_call", "function")


def read_messages(row: Fields, origin: Origin) -> Chat:
    """A Chat from `messages` (or `conversation`, `conversations`) and optional `tools`. Raises RowError.

    Blocks of type text, reasoning and tool_call become content, reasoning and tool calls. `Message` holds them in this
    order, so blocks in another order are refused instead of being moved.
    """
    key = first_key(row, KEYS)
    if key is None:
        raise missing(KEYS[0], row, " or ".join(KEYS))
    return Chat(check_turns(message_list(row[key], key), key), tools(row), origin)


def message_list(value: Any, field: str) -> list[Message]:
    """The messages of a list, without a check of their order."""
    if not isinstance(value, list):
        raise wrong_type(field, value, "a list of messages")
    made = []
    for i, message in enumerate(value):
        here = f"{field}[{i}]"
        if not isinstance(message, dict):
            raise wrong_type(here, message, "an object with role and content")
        made.append(_message(message, here))
    return made


def _message(row: Fields, field: str) -> Message:
    name = string(row, ("role",), f"{field}.")
    role = ROLES.get(name)
    if role is None:
        fix = nearest(name, ROLES)
        raise RowError("unknown role", field=f"{field}.role", got=shown(name), expected=", ".join(ROLES), fix=fix)
    call_keys = [key for key in ("tool_calls", "function_call") if row.get(key)]
    if "content" not in row and not call_keys:
        raise missing(f"{field}.content", row, "content")
    content, reasoning, tool_calls = _content(row.get("content"), role, f"{field}.content", bool(call_keys))
    for key in call_keys:
        tool_calls += calls(row[key], f"{field}.{key}")
    reasoning = string(row, ("reasoning_content", "reasoning", "thinking"), f"{field}.", default="") + reasoning
    if role != "assistant" and (reasoning or tool_calls):
        what = "tool calls" if tool_calls else "reasoning"
        raise RowError(f"{what} outside an assistant turn", field=field, got=f"role {name}", expected="role assistant")
    speaker = string(row, ("name",), f"{field}.", default="") or None
    return Message(role, content, reasoning or None, tool_calls, speaker, weight(row, field))


def _content(value: Any, role: Role, field: str, called: bool) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """Content, reasoning and tool calls of a message."""
    if isinstance(value, str):
        return value, "", ()
    if value is None and (called or role == "assistant"):
        return "", "", ()  # an assistant turn without content and calls is refused as empty
    blocks = isinstance(value, list) and all(isinstance(block, dict) and "type" in block for block in value)
    if role == "tool" and isinstance(value, dict | list) and not (blocks and value):
        return json.dumps(value, ensure_ascii=False, default=str), "", ()  # a result given as data
    if not blocks:
        raise wrong_type(field, value, "a string or a list of typed blocks")
    content, reasoning, stage = "", "", 0
    found: tuple[dict[str, Any], ...] = ()
    for i, block in enumerate(value):
        here, kind = f"{field}[{i}]", block["type"]
        kinds = (*_REASONING, *_TEXT, *_CALL)
        if kind not in kinds:
            fix = nearest(kind, kinds) if isinstance(kind, str) else ""
            expected = "text, reasoning or tool_call"
            raise RowError("unknown block type", field=f"{here}.type", got=shown(kind), expected=expected, fix=fix)
        now = 0 if kind in _REASONING else 1 if kind in _TEXT else 2
        if now < stage:
            got = f"{kind} after {'tool_call' if stage == 2 else 'text'}"
            fix = "Split the message into two"
            raise RowError("blocks out of order", field=here, got=got, expected="reasoning, text, tool_call", fix=fix)
        stage = now
        if now == 2:
            key = first_key(block, ("value", kind))
            found += calls(block[key] if key else block, f"{here}.{key}" if key else here)
        elif now == 1:
            content += string(block, ("text", "value"), f"{here}.")
        else:
            reasoning += string(block, ("value", kind, "text"), f"{here}.")
    return content, reasoning, found
