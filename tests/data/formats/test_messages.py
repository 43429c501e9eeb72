"""Rows of messages, each by an example that can be checked by eye."""

import json
from typing import Any

import pytest

from conversations import WRAPPED, call, one, turns
from espalier.data.formats.messages import read_messages
from espalier.errors import RowError
from espalier.types import Message, Origin


@pytest.mark.parametrize("key", ["messages", "conversation", "conversations"])
def test_messages_of_strings_under_every_key(key: str) -> None:
    row = {key: [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert turns("messages", row) == [("user", "q"), ("assistant", "a")]


def test_typed_blocks_become_content_reasoning_and_calls() -> None:
    blocks = [
        {"type": "reasoning", "value": "I look"},
        {"type": "thinking", "thinking": " it up."},
        {"type": "text", "text": "Let me "},
        {"type": "text", "value": "see."},
        {"type": "tool_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})},
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
    ]
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "?"}]},
            {"role": "assistant", "content": blocks},
            {"role": "tool", "content": "1, 20", "name": "weather"},
            {"role": "assistant", "content": "ok"},
        ],
        "tools": [WRAPPED],
    }
    chat = one("messages", row)
    calls = (call("weather", city="Oslo"), call("weather", city="Rome"))
    assert chat.messages[1] == Message("assistant", "Let me see.", "I look it up.", calls)
    assert chat.messages[2] == Message("tool", "1, 20", name="weather")
    assert chat.tools == (WRAPPED,)


def test_null_content_with_calls_and_reasoning_content() -> None:
    asked = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
    }
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}
    row = {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": "q"},
            asked,
            {"role": "tool", "content": [{"y": 2}]},
            old,
            {"role": "function", "content": "3"},
            {"role": "assistant", "content": "a"},
        ]
    }
    messages = one("messages", row).messages
    assert messages[0] == Message("system", "S")
    assert messages[2] == Message("assistant", "", "hm", ({"id": "c1", **call("f", x=1)},))
    assert messages[3] == Message("tool", '[{"y": 2}]')
    assert messages[4] == Message("assistant", "", tool_calls=(call("f"),))
    assert messages[5] == Message("tool", "3")


@pytest.mark.parametrize(
    ("extra", "weight"),
    [
        ({}, None),
        ({"weight": 0}, 0.0),
        ({"loss_weight": 0.25}, 0.25),
        ({"train": True}, 1.0),
        ({"train": False}, 0.0),
        ({"train": True, "weight": 2}, 2.0),
        ({"weight": None, "train": None}, None),
    ],
)
def test_weights_and_train_flags(extra: dict[str, Any], weight: float | None) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **extra}]}
    assert one("messages", row).messages[1].weight == weight


@pytest.mark.parametrize(
    "roles", ["ua", "sua", "uua", "uaa", "a", "sa", "uauata", "uatta", "ua" * 10], ids=lambda roles: roles
)
def test_role_orders_that_templates_take(roles: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    row = {"messages": [{"role": names[r], "content": "x"} for r in roles]}
    assert [m.role[0] for m in one("messages", row).messages] == list(roles)


TURN = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"masked": True}, 0.0),
        ({"skip": False}, 1.0),
        ({"loss_mask": 0}, 0.0),
        ({"is_trainable": False}, 0.0),
        ({"train_on_turn": True, "weight": 0.5}, 0.5),
        ({"Train": False}, 0.0),
    ],
)
def test_weights_in_further_spellings(keys: dict[str, Any], expected: float) -> None:
    row = {"messages": [TURN, {"role": "assistant", "content": "Hello!", **keys}]}
    assert read_messages(row, Origin()).messages[1].weight == expected


@pytest.mark.parametrize(
    "keys",
    [{"weight": 0.5, "loss_weight": 1}, {"weight": 1, "loss": 0.3}, {"masked": True, "train": True}, {"mask": 1}],
)
def test_weights_that_contradict_or_say_nothing_are_refused(keys: dict[str, Any]) -> None:
    row = {"messages": [TURN, {"role": "assistant", "content": "Hello!", **keys}]}
    with pytest.raises(RowError, match="weight"):
        read_messages(row, Origin())


@pytest.mark.parametrize(("speaker", "words"), [("speaker", "text"), ("sender", "message"), ("role", "value")])
def test_turns_with_other_keys(speaker: str, words: str) -> None:
    row = {"messages": [{speaker: "user", words: "Hi"}, {speaker: "assistant", words: "Hello!"}]}
    chat = read_messages(row, Origin())
    assert [(turn.role, turn.content) for turn in chat.messages] == [("user", "Hi"), ("assistant", "Hello!")]
