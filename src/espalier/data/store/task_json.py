"""Tasks as lines of JSON, and back: what is read is equal to what was written."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from espalier.types import Message, Origin, Task

_FRESH = Message("user", "")
_EMPTY = Task(())


def to_line(task: Task) -> bytes:
    """One line of JSON, which leaves out what is at its default, and where the task was read.

    Raises TypeError for a value that JSON does not hold.
    """
    data: dict[str, Any] = {"prompt": [_message(message) for message in task.prompt]}
    for name in ("answer", "verifier", "facts", "columns", "tools", "template_args"):
        if getattr(task, name) != getattr(_EMPTY, name):
            data[name] = getattr(task, name)
    # Characters outside ASCII are escaped, which also holds lone surrogates.
    return json.dumps(data).encode() + b"\n"


def _message(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    for field in fields(Message)[2:]:
        if getattr(message, field.name) != getattr(_FRESH, field.name):
            data[field.name] = getattr(message, field.name)
    return data


def from_line(line: bytes, origin: Origin) -> Task:
    """The task of a line that `to_line` wrote, read from `origin`."""
    data = json.loads(line)
    prompt = []
    for message in data.pop("prompt"):
        message["tool_calls"] = tuple(message.get("tool_calls", ()))
        prompt.append(Message(**message))
    data["tools"] = tuple(data.get("tools", ()))
    return Task(tuple(prompt), origin=origin, **data)
