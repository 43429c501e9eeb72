"""Null keys that a table puts into tool calls and function schemas.

A table gives all objects of a column the same keys. A call of one function then holds the arguments of every other one,
as null, and `datasets` writes them into JSON as well. What a row holds as JSON in a string is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from espalier.data.formats.common import Given
from espalier.types import Chat, Example, Message, Ranking, Task

LEFT_OUT = "null keys left out of tool calls and function schemas, because no schema has them"


def without_forced_nulls(example: Example) -> tuple[Example, int]:
    """The example without null keys that a table forced into it, and how many there were.

    In a function schema, every null key is left out: what is null there says what its absence says. In the arguments
    of a call, a null is kept if the schema of the function, among those on offer, requires that argument, lets it be
    null or says nothing of its type. An optional text that is null was not given: no other reading makes rows in JSON,
    which leave it out, the same as those of a table.

    >>> call = {"function": {"name": "rate", "arguments": Given(code="EUR", day=None, zone=None, at=None)}}
    >>> schema = {"properties": {"code": {"type": "string"}, "day": {"type": ["string", "null"]}, "zone": None,
    ...     "at": {"type": "string"}}, "required": ["code"]}
    >>> tool = Given(type="function", function={"name": "rate", "parameters": schema})
    >>> chat, count = without_forced_nulls(Chat((Message("assistant", "", tool_calls=(call,)),), (tool,)))
    >>> chat.messages[0].tool_calls[0]["function"]["arguments"], count
    ({'code': 'EUR', 'day': None}, 3)
    """
    if not isinstance(example, (Chat, Ranking, Task)):
        return example, 0
    tools, count = _tools(example.tools)
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    if isinstance(example, Chat):
        messages, more = _messages(example.messages, schemas)
        if not count + more and tools is example.tools:
            return example, 0
        return replace(example, messages=messages, tools=tools), count + more
    if isinstance(example, Task):
        messages, more = _messages(example.prompt, schemas)
        if not count + more and tools is example.tools:
            return example, 0
        return replace(example, prompt=messages, tools=tools), count + more
    everything = (*example.prompt, *(response.message for response in example.responses))
    if not count and tools is example.tools and not any(message.tool_calls for message in everything):
        return example, 0
    prompt, more = _messages(example.prompt, schemas)
    count += more
    responses = []
    for response in example.responses:
        (message,), more = _messages((response.message,), schemas)
        count += more
        responses.append(replace(response, message=message))
    return replace(example, prompt=prompt, responses=tuple(responses), tools=tools), count


def _tools(tools: tuple[dict[str, Any], ...]) -> tuple[tuple[dict[str, Any], ...], int]:
    """The function schemas without null keys, and how many there were."""
    if not tools or not any(isinstance(tool, Given) for tool in tools):
        return tools, 0
    result, count = [], 0
    for tool in tools:
        if isinstance(tool, Given):
            tool, more = _without_nulls(dict(tool))
            count += more
        result.append(tool)
    return tuple(result), count


def _without_nulls(value: Any) -> tuple[Any, int]:
    """A value without null keys at any level, and how many there were; lists keep their nulls."""
    if isinstance(value, list):
        pairs = [_without_nulls(inner) for inner in value]
        return [inner for inner, _ in pairs], sum(count for _, count in pairs)
    if not isinstance(value, dict):
        return value, 0
    result, total = {}, 0
    for key, inner in value.items():
        if inner is None:
            total += 1
            continue
        result[key], count = _without_nulls(inner)
        total += count
    return result, total


def _messages(messages: tuple[Message, ...], schemas: Mapping[str, Any]) -> tuple[tuple[Message, ...], int]:
    """The messages with arguments that are cleaned by the schemas of the functions that they call."""
    if not any(message.tool_calls and _given(message.tool_calls) for message in messages):
        return messages, 0
    result, total = [], 0
    for message in messages:
        calls = []
        for call in message.tool_calls:
            function = call["function"]
            arguments = function["arguments"]
            if isinstance(arguments, Given):
                arguments, count = _arguments(dict(arguments), schemas.get(function["name"]))
                call = {**call, "function": {**function, "arguments": arguments}}
                total += count
            calls.append(call)
        result.append(replace(message, tool_calls=tuple(calls)))
    return tuple(result), total


def _given(calls: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(call["function"]["arguments"], Given) for call in calls)


def _arguments(value: Any, schema: Any) -> tuple[Any, int]:
    """An argument without null keys that its schema does not take as null, and how many there were."""
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, Mapping) else None
        pairs = [_arguments(inner, items) for inner in value]
        return [inner for inner, _ in pairs], sum(count for _, count in pairs)
    if not isinstance(value, dict):
        return value, 0
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        properties = {}
    required = schema.get("required") if isinstance(schema, Mapping) else None
    result, total = {}, 0
    for key, inner in value.items():
        if inner is None and not (key in (required or ()) or _may_be_null(properties.get(key))):
            total += 1
            continue
        result[key], count = _arguments(inner, properties.get(key))
        total += count
    return result, total


def _may_be_null(schema: Any) -> bool:
    """Whether the schema of an argument lets it be null: its type says so, or none of its kinds is given a type."""
    if not isinstance(schema, Mapping):
        return False
    kinds = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(kinds, list):
        return any(_may_be_null(kind) for kind in kinds)
    if schema.get("nullable") or None in (schema.get("enum") or ()):
        return True
    names = schema.get("type")
    return names is None or "null" in (names if isinstance(names, list) else [names])
