"""OpenAI messages: roles with content that is a string or a list of typed blocks, tool calls, reasoning and weights."""

from __future__ import annotations

import json
import re
from typing import Any

from espalier.data.columns.contents import has_substance
from espalier.data.columns.watched import peek
from espalier.data.files.json_rows import decode_string
from espalier.data.formats.common import (
    Fields,
    calls,
    check_turns,
    first_key,
    has_any,
    missing,
    role_of,
    shown,
    string,
    tool_call_id,
    weight,
    wrong_type,
)
from espalier.data.formats.format import Format
from espalier.data.formats.lead import (
    ReadTurns,
    alternating,
    is_pair,
    is_passages,
    is_texts,
    passages,
    tools_of,
    turns_with_context,
    with_history,
    with_system,
)
from espalier.errors import RowError, nearest
from espalier.types import Chat, Consumes, Message, Origin, Role

KEYS = ("messages", "conversation", "conversations")
LATER = ("dialog", "dialogue", "items")
SPEAKERS = ("role", "speaker", "sender")
WORDS = ("content", "text", "value", "message", "utterance")
"""Under which keys a turn names who speaks, and what is said."""
"""Where turns may stand, too, if there are none under KEYS; other columns are called so as well."""
_ALL_KEYS = (*KEYS, *LATER)
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}
# A list of turns that a table without nested columns holds as text.
_JSON_TURNS = re.compile(r'\s*\[\s*\{\s*"(role|content|from|value)"\s*:')
_REASONING = ("reasoning", "thinking")
_TEXT = ("text", "output_text", "input_text")
_CALL = ("tool_call", "function")
_STAGES = ("reasoning", "text", "tool_call")
_BLOCKS = (*_REASONING, *_TEXT, *_CALL)
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_CALL_KEYS = ("tool_calls", "function_call")

Content = tuple[str, str, tuple[dict[str, Any], ...]]
"""Content, reasoning and tool calls of a message."""


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has turns with a `role`. If they have neither it nor `from`, the name of their list decides."""
    key = turns_key(row)
    if key is None:
        return False
    turn = _first_object(decoded_turns(row[key], key))
    if first_key(turn, (*SPEAKERS, "from")):
        return first_key(turn, SPEAKERS) is not None
    return key.lower() in ("messages", "conversation") and not is_pair(turn)


def turns_key(row: Fields) -> str | None:
    """Under which key a row has its turns; None if it has none."""
    if not has_any(row, _ALL_KEYS):
        return None
    key = first_key(row, KEYS)
    if key is not None:
        return key
    for name in LATER:
        key = first_key(row, (name,))
        if key is None:
            continue
        value = peek(row, key)
        if is_turns(value):
            return key
        # Not what is to be summed up, beside its summary.
        if name != "items" and is_texts(value) and not has_substance(row, (key,)):
            return key
    return None


def is_turns(value: Any) -> bool:
    """Whether a value is a list of objects, or looks like the JSON of a list of turns."""
    if isinstance(value, str):
        return _JSON_TURNS.match(value) is not None
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def decoded_turns(value: Any, field: str) -> Any:
    """The list of turns whose JSON a value is; every other value as it is. Raises RowError for broken JSON."""
    if isinstance(value, str) and is_turns(value):
        return decode_string(value, field, "a list of turns, or its JSON")
    return value


def _first_object(turns: Any) -> Fields:
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            return turn
    return {}


def read_messages(row: Fields, origin: Origin) -> Chat:
    """A Chat from `messages` (or `conversation`, `conversations` ...), and, beside it, a system text, earlier turns, a
    context (`lead`) and `tools`. Raises RowError.

    Blocks of type text, reasoning and tool_call become content, reasoning and tool calls. `Message` holds them in this
    order, so blocks in another order are refused instead of being moved.
    """
    key = turns_key(row)
    if key is None:
        raise missing(KEYS[0], row, " or ".join(KEYS))
    return conversation(row, key, message_list, origin)


def conversation(row: Fields, key: str, read_turns: ReadTurns, origin: Origin) -> Chat:
    """The Chat of the turns under `key`, with what stands beside them. Raises RowError."""
    listed = decoded_turns(row[key], key)
    messages = read_turns(listed, key)
    # Checked without what comes before, so that an error counts turns as the file does.
    turns = check_turns(messages, key)
    # Anything else under this name is not read: what it holds decides if it may be left out.
    if is_passages(peek(row, "context")):
        messages = turns_with_context(messages, passages(row["context"], "context"))
    messages = with_system(row, with_history(row, messages, read_turns))
    if len(messages) > len(turns):
        messages = list(check_turns(messages, key))
    return Chat(tuple(messages), tools_of(row, listed, key), origin)


def message_list(value: Any, field: str) -> list[Message]:
    """The messages of a list, without a check of their order."""
    value = decoded_turns(value, field)
    if not isinstance(value, list):
        raise wrong_type(field, value, "a list of messages")
    if is_texts(value):
        return alternating(value)
    messages = []
    for i, message in enumerate(value):
        here = f"{field}[{i}]"
        if not isinstance(message, dict):
            raise wrong_type(here, message, "an object with role and content")
        messages.append(_message(message, here))
    return messages


def _message(row: Fields, field: str) -> Message:
    name = string(row, SPEAKERS, f"{field}.")
    role = role_of(name, ROLES, f"{field}.role")
    if len(row) == 2 and isinstance(peek(row, "content"), str):
        # As most messages are: nothing else needs to be looked for.
        return Message(role, row["content"])
    call_keys = [key for key in _CALL_KEYS if row.get(key)]
    key = first_key(row, WORDS) or "content"
    if key not in row and not call_keys:
        raise missing(f"{field}.content", row, "content")
    content, reasoning, tool_calls = _content(row.get(key), role, f"{field}.{key}", bool(call_keys))
    for key in call_keys:
        tool_calls += calls(row[key], f"{field}.{key}")
    reasoning = string(row, _REASONING_KEYS, f"{field}.", default="") + reasoning
    if role != "assistant" and (reasoning or tool_calls):
        what = "tool calls" if tool_calls else "reasoning"
        raise RowError(f"{what} outside an assistant turn", field=field, got=f"role {name}", expected="role assistant")
    speaker = string(row, ("name",), f"{field}.", default="") or None
    answered = tool_call_id(row, field) if role == "tool" else None
    return Message(role, content, reasoning or None, tool_calls, speaker, weight(row, field), answered)


def _content(value: Any, role: Role, field: str, has_calls: bool) -> Content:
    """What the `content` of a message holds; `has_calls` says that tool calls stand beside it."""
    if isinstance(value, str):
        return value, "", ()
    if value is None and (has_calls or role == "assistant"):
        # An assistant turn with neither content nor calls is refused as empty later.
        return "", "", ()
    is_blocks = isinstance(value, list) and all(isinstance(block, dict) and "type" in block for block in value)
    if role == "tool" and isinstance(value, dict | list) and not (is_blocks and value):
        # The result of a tool, given as data instead of a text. `default`: Parquet holds dates, too.
        return json.dumps(value, ensure_ascii=False, default=str), "", ()
    if not is_blocks:
        raise wrong_type(field, value, "a string or a list of typed blocks")
    return _blocks(value, field)


def _blocks(blocks: list[dict[str, Any]], field: str) -> Content:
    """The content of typed blocks, which stand in the order reasoning, text, calls."""
    content, reasoning, previous = "", "", "reasoning"
    tool_calls: tuple[dict[str, Any], ...] = ()
    for i, block in enumerate(blocks):
        here, kind = f"{field}[{i}]", block["type"]
        stage = _stage(kind, f"{here}.type")
        if _STAGES.index(stage) < _STAGES.index(previous):
            got, fix = f"{kind} after {previous}", "Split the message into two"
            raise RowError("blocks out of order", field=here, got=got, expected=", ".join(_STAGES), fix=fix)
        previous = stage
        if stage == "reasoning":
            reasoning += string(block, ("value", kind, "text"), f"{here}.")
        elif stage == "text":
            content += string(block, ("text", "value"), f"{here}.")
        else:
            key = first_key(block, ("value", kind))
            tool_calls += calls(block[key], f"{here}.{key}") if key else calls(block, here)
    return content, reasoning, tool_calls


def _stage(kind: Any, field: str) -> str:
    """Which of `_STAGES` a block of type `kind` belongs to. Raises RowError for an unknown type."""
    if kind in _REASONING:
        return "reasoning"
    if kind in _TEXT:
        return "text"
    if kind in _CALL:
        return "tool_call"
    fix, expected = nearest(kind, _BLOCKS), "text, reasoning or tool_call"
    raise RowError("unknown block type", field=field, got=shown(kind), expected=expected, fix=fix)


FORMAT = Format("messages", read_messages, looks)
