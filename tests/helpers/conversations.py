"""Conversations as the formats read them, for tests by eye."""

from typing import Any

from espalier.data.formats import convert
from espalier.types import Origin

HERE = Origin("file", 7)


def one(name: str, row: dict[str, Any]) -> Any:
    (example,) = convert(name, row, HERE)
    assert example.origin == HERE
    return example


def turns(name: str, row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in one(name, row).messages]


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


WRAPPED = {"type": "function", "function": WEATHER}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}
