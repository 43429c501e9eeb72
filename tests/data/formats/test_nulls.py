"""Null keys that a table forced into calls and schemas are left out; those that a call gives stay."""

import doctest
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from espalier.data.columns.ledger import Ledger
from espalier.data.formats import nulls
from espalier.data.read import Source, read
from espalier.types import Chat


def test_worked_example() -> None:
    assert doctest.testmod(nulls).failed == 0


def talk(name: str, arguments: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    messages = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": messages, "tools": [tool]}


ROWS = [
    talk("rate", {"code": "EUR", "day": None}, {"code": {"type": "string"}, "day": {"type": ["string", "null"]}}),
    talk("find", {"inside": {"depth": 2}}, {"inside": {"type": "object"}}),
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_table_gives_the_same_calls_in_json_and_in_parquet(suffix: str, tmp_path: Path) -> None:
    table, path = datasets.Dataset.from_list(ROWS), tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        table.to_json(path)
    else:
        table.to_parquet(path)
    ledger = Ledger()
    first, second = read(Source(str(path)), ledger)
    assert isinstance(first, Chat) and isinstance(second, Chat)
    arguments = [chat.messages[1].tool_calls[0]["function"]["arguments"] for chat in (first, second)]
    assert arguments == [{"code": "EUR", "day": None}, {"inside": {"depth": 2}}]
    assert [tuple(chat.tools[0]["function"]["parameters"]["properties"]) for chat in (first, second)] == [
        ("code", "day"),
        ("inside",),
    ]
    assert ledger.notes == {nulls.LEFT_OUT: 6}
    assert any("null keys left out" in line for line in ledger.lines())


def test_arguments_in_a_string_are_what_the_model_wrote(tmp_path: Path) -> None:
    row = talk("find", {}, {})
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"anything": null}'
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (chat,) = read(Source(str(path)))
    assert isinstance(chat, Chat)
    assert chat.messages[1].tool_calls[0]["function"]["arguments"] == {"anything": None}


OPTIONAL = {"code": {"type": "string"}, "day": {"type": "string"}}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_optional_argument_that_was_not_given_is_absent_in_json_and_in_parquet(suffix: str, tmp_path: Path) -> None:
    """Written by hand, JSON leaves it out; a table holds null, which the type of the argument does not take."""
    rows = [talk("rate", {"code": "EUR"}, OPTIONAL), talk("rate", {"code": "USD", "day": "monday"}, OPTIONAL)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    chats = list(read(Source(str(path)), Ledger()))
    arguments = [chat.messages[1].tool_calls[0]["function"]["arguments"] for chat in chats if isinstance(chat, Chat)]
    assert arguments == [{"code": "EUR"}, {"code": "USD", "day": "monday"}]


@pytest.mark.parametrize(
    ("schema", "kept"),
    [
        ({"type": "string"}, False),
        ({"type": ["string", "null"]}, True),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, True),
        ({"anyOf": [{"type": "string"}, {"type": "number"}]}, False),
        ({"type": "string", "nullable": True}, True),
        ({"enum": ["a", None], "type": "string"}, True),
        ({"description": "any day"}, True),
        (None, False),
    ],
)
def test_a_null_is_kept_if_the_argument_may_be_null(schema: Any, kept: bool) -> None:
    parameters = {"type": "object", "properties": {"day": schema}}
    arguments, dropped = nulls._arguments({"day": None}, parameters)
    assert (arguments, dropped) == (({"day": None}, 0) if kept else ({}, 1))
    assert nulls._arguments({"day": None}, {**parameters, "required": ["day"]}) == ({"day": None}, 0)
