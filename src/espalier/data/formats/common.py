"""What the formats share: looking fields up, naming what is wrong with them, tool calls, and which turns may follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.data.files.json_rows import decode_string, readable
from espalier.errors import RowError
from espalier.types import Message

Fields = Mapping[str, Any]


def shown(value: Any) -> str:
    """A value as an error names it: its JSON type and its beginning."""
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "list", dict: "object"}
    if value is None:
        return "null"
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{names.get(type(value), type(value).__name__)} {text}"


def wrong_type(field: str, value: Any, expected: str) -> RowError:
    return RowError("wrong type", field=field, got=shown(value), expected=expected)


def missing(field: str, row: Fields, expected: str, fix: str = "") -> RowError:
    keys = sorted(map(readable, row))
    got = f"the keys {', '.join(keys[:20])}{' ...' if len(keys) > 20 else ''}" if keys else "no keys"
    return RowError("missing key", field=field, got=got, expected=expected, fix=fix)


def empty_answer(field: str, value: str) -> RowError:
    got = f"content {value[:20]!r}"
    return RowError("empty assistant turn", field=field, got=got, expected="a text to learn")


def first_key(row: Fields, keys: Sequence[str]) -> str | None:
    """The first of `keys` that `row` holds with a value other than null."""
    return next((key for key in keys if row.get(key) is not None), None)


def string(row: Fields, keys: Sequence[str], field: str = "", default: str | None = None) -> str:
    """The string under the first of `keys` that is there. Raises RowError where it is missing or not a string."""
    key = first_key(row, keys)
    if key is None:
        if default is not None:
            return default
        raise missing(field + keys[0], row, " or ".join(keys))
    if not isinstance(row[key], str):
        raise wrong_type(field + key, row[key], "a string")
    return str(row[key])


def weight(row: Fields, field: str) -> float | None:
    """A message's own loss weight: `weight` or `loss_weight`, a number from 0 up, or `train`, true (1) or false (0)."""
    key = first_key(row, ("weight", "loss_weight"))
    value, train = row.get(key) if key else None, row.get("train")
    if key and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise wrong_type(f"{field}.{key}", value, "a number from 0 up")
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise RowError("impossible weight", field=f"{field}.{key}", got=str(value), expected="a number from 0 up")
    if train is None:
        return None if value is None else float(value)
    if not isinstance(train, bool):
        raise wrong_type(f"{field}.train", train, "true or false")
    if value is not None and train != (value > 0):
        got = f"train {str(train).lower()} with {key} {value}"
        raise RowError("contradicting weight", field=field, got=got, expected="one that agrees", fix="Keep one of them")
    return float(train) if value is None else float(value)


# ------------------------------------------------------------------------------------------------------------- tools


def _json(value: Any, field: str, expected: str) -> Any:
    """`value`, decoded first where it is a string."""
    return decode_string(value, field, expected) if isinstance(value, str) else value


def tools(row: Fields) -> tuple[dict[str, Any], ...]:
    """The functions on offer, from `tools` or `functions`: a list or its JSON, each in its OpenAI wrapper or bare.

    A bare schema `{"name": ...}` becomes `{"type": "function", "function": {"name": ...}}`.
    """
    key = first_key(row, ("tools", "functions"))
    if key is None or (isinstance(row[key], str) and not row[key].strip()):
        return ()
    expected = "a list of function schemas, or its JSON"
    listed = _json(row[key], key, expected)
    if listed is None:
        return ()
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list):
        raise wrong_type(key, row[key], expected)
    made = []
    for i, tool in enumerate(listed):
        field = f"{key}[{i}]"
        tool = _json(tool, field, "a function schema, or its JSON")
        if not isinstance(tool, dict):
            raise wrong_type(field, tool, "an object")
        schema = tool.get("function", tool)
        if not isinstance(schema, dict):
            raise wrong_type(f"{field}.function", schema, "an object")
        string(schema, ("name",), f"{field}.")
        made.append(dict(tool) if "function" in tool else {"type": "function", "function": tool})
    return tuple(made)


def calls(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    """Tool calls in OpenAI form from one call or a list of parallel ones, given as objects or as JSON.

    Arguments that are the JSON of an object are decoded, so that a template does not write them as a quoted string.
    """
    expected = "a tool call {name, arguments}, a list of them, or the JSON of either"
    decoded = _json(value, field, expected)
    listed = decoded if isinstance(decoded, list) else [decoded]
    if not listed:
        raise RowError("empty tool calls", field=field, got="an empty list", expected=expected)
    made = []
    for i, call in enumerate(listed):
        place = f"{field}[{i}]" if isinstance(decoded, list) else field
        call = _json(call, place, expected)
        if not isinstance(call, dict):
            raise wrong_type(place, call, expected)
        inner = call.get("function", call)
        if not isinstance(inner, dict):
            raise wrong_type(f"{place}.function", inner, "an object")
        name = string(inner, ("name",), f"{place}.")
        if not name:
            raise RowError("empty tool name", field=f"{place}.name", got="an empty string", expected="a name")
        arguments = first_key(inner, ("arguments", "parameters"))
        given = inner[arguments] if arguments else {}
        place = f"{place}.{arguments}"
        given = {} if given == "" else _json(given, place, "the JSON of an object")
        if not isinstance(given, dict):
            raise wrong_type(place, given, "an object, or its JSON")
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made.append({**identity, "type": "function", "function": {"name": name, "arguments": given}})
    return tuple(made)


# ------------------------------------------------------------------------------------------------------------- turns


def check_turns(messages: Sequence[Message], field: str) -> tuple[Message, ...]:
    """Return the messages if some chat template takes them and there is something to learn; raise RowError otherwise.

    Accepted, as the templates in common use do: no system turn, an assistant turn first, several user or assistant
    turns in a row, tool results after any assistant turn, empty user turns. Refused: a system turn that is not first, a
    tool result that follows neither an assistant turn nor another result, an assistant turn with neither content nor
    tool calls, and a conversation that does not end on an assistant turn.
    """
    if not messages:
        raise RowError(
            "no turns", field=field, got="an empty list", expected="at least one user and one assistant turn"
        )
    previous = ""
    for i, message in enumerate(messages):
        here = f"{field}[{i}]"
        if message.role == "system" and i:
            got = f"a system turn after {'another' if previous == 'system' else 'a ' + previous + ' turn'}"
            fix = "Move its text to the front, or into a user turn"
            raise RowError("system turn not first", field=here, got=got, expected="one, at the start", fix=fix)
        if message.role == "tool" and previous not in ("assistant", "tool"):
            got = f"a tool result {'after a ' + previous + ' turn' if previous else 'at the start'}"
            raise RowError("tool result without a call", field=here, got=got, expected="an assistant turn before it")
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            got = "reasoning alone" if message.reasoning else f"content {message.content[:20]!r}"
            raise RowError("empty assistant turn", field=here, got=got, expected="content or tool calls")
        previous = message.role
    if "assistant" not in {message.role for message in messages}:
        got = "the roles " + ", ".join(message.role for message in messages[:6])
        raise RowError("no assistant turn", field=field, got=got, expected="an assistant turn to learn from")
    if previous != "assistant":
        last = {"user": "the user", "tool": "a tool result"}[previous]
        fix = "Drop what follows the last assistant turn, or add the answer"
        expected = "an assistant turn at the end"
        here = f"{field}[{len(messages) - 1}]"
        raise RowError(f"conversation ends on {last}", field=here, got=f"role {previous}", expected=expected, fix=fix)
    return tuple(messages)
