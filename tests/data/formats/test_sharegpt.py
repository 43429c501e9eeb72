"""ShareGPT rows, each by an example that can be checked by eye."""

import json

from conversations import WEATHER, WRAPPED, call, one
from espalier.types import Message


def test_sharegpt_calls_and_observations() -> None:
    row = {
        "system": "Be brief.",
        "tools": json.dumps([WEATHER]),
        "conversations": [
            {"from": "human", "value": "Oslo and Rome?"},
            {
                "from": "function_call",
                "value": json.dumps(
                    [
                        {"name": "weather", "arguments": {"city": "Oslo"}},
                        {"name": "weather", "arguments": json.dumps({"city": "Rome"})},
                    ]
                ),
            },
            {"from": "gpt", "value": "One moment."},
            {"from": "observation", "value": {"Oslo": 1, "Rome": 20}},
            {"from": "gpt", "value": "1 and 20."},
        ],
    }
    chat = one("sharegpt", row)
    assert chat.tools == (WRAPPED,)
    assert chat.messages == (
        Message("system", "Be brief."),
        Message("user", "Oslo and Rome?"),
        Message("assistant", "", tool_calls=(call("weather", city="Oslo"), call("weather", city="Rome"))),
        Message("assistant", "One moment."),
        Message("tool", '{"Oslo": 1, "Rome": 20}'),
        Message("assistant", "1 and 20."),
    )


def test_sharegpt_keeps_a_system_turn_and_weights() -> None:
    talk = [
        {"from": "system", "value": "S"},
        {"from": "user", "value": "u"},
        {"from": "assistant", "value": "a", "weight": 0.5},
    ]
    chat = one("sharegpt", {"conversations": talk, "tools": "[]", "system": ""})
    assert [(m.role, m.content, m.weight) for m in chat.messages] == [
        ("system", "S", None),
        ("user", "u", None),
        ("assistant", "a", 0.5),
    ]
    assert chat.tools == ()
