"""What the fields of a row mean: every format by an example that can be checked by eye."""

import json
from typing import Any

import pytest

from espalier.data.formats import ALL, FILES, FOLDERS, FORMATS, KNOWN, convert, sniff, vote
from espalier.data.formats.alpaca import alpaca_prompt
from espalier.types import Chat, Completion, Message, Origin, Text

HERE = Origin("file", 7)
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
WRAPPED = {"type": "function", "function": WEATHER}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def one(name: str, row: dict[str, Any]) -> Any:
    (example,) = convert(name, row, HERE)
    assert example.origin == HERE
    return example


def turns(name: str, row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in one(name, row).messages]


# ----------------------------------------------------------------------------------------------------------- sniffing


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "output": "b", "text": "all of it"}, "alpaca"),
        ({"instruction": "a", "context": "", "response": "b"}, "alpaca"),
        ({"instruction": "a", "instances": [{"input": "", "output": "b"}]}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"messages": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"messages": [{"role": "user", "content": "a"}], "prompt": "a"}, "messages"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "messages"),
        ({"conversation": [{"role": "user", "content": "a"}]}, "messages"),
        ({"question": "a", "answer": "b"}, "prompt"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": []}, "prompt"),
        ({"query": "a", "response": "b"}, "prompt"),
        ({"text": "a"}, "text"),
        ({"chapter": "1", "paragraphs": ["a"]}, "text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs"),
        ({"instruction": "a"}, None),
        ([{"role": "user", "content": "a"}], None),
    ],
)
def test_sniff_goes_by_keys(row: Any, expected: str | None) -> None:
    assert sniff(row) == expected


def test_most_rows_win_and_the_earlier_one_of_equals() -> None:
    text, pair = {"text": "a"}, {"prompt": "a", "answer": "b"}
    assert vote([text, pair, pair]) == "prompt"
    assert vote([{"id": 1}, text, pair]) == "text"
    assert vote([{"id": 1}]) is None


# ------------------------------------------------------------------------------------------------------------- alpaca


def test_alpaca_joins_instruction_and_input_by_one_line_end() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["hi", "hello"]]}
    assert turns("alpaca", row) == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "Add.\n1 2"),
        ("assistant", "3"),
    ]
    assert turns("alpaca", {"instruction": "Go.", "input": None, "output": "ok"})[0] == ("user", "Go.")


def test_alpaca_prompt_text() -> None:
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {x}.\n\n### Input:\n1 2\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nhi\n\n### Response:"
    )
    assert alpaca_prompt("Add {x}.", "1 2") == with_input
    row = {"instruction": "Add {x}.", "input": "1 2", "output": "3", "history": [["hi", "hello"]]}
    (chat,) = convert("alpaca", row, HERE, alpaca_prompt=True)
    assert isinstance(chat, Chat)
    assert [m.content for m in chat.messages] == [without, "hello", with_input, "3"]


def test_each_instance_of_a_seed_task_is_an_example() -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": "?"}]}
    chats = convert("alpaca", row, HERE)
    assert [[m.content for m in c.messages] for c in chats if isinstance(c, Chat)] == [
        ["Add.\n1 2", "3"],
        ["Add.", "?"],
    ]
    assert [c.origin for c in chats] == [HERE, HERE]


# ----------------------------------------------------------------------------------------------------------- sharegpt


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


# ----------------------------------------------------------------------------------------------------------- messages


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


# -------------------------------------------------------------------------------------------- prompt, completion, text


@pytest.mark.parametrize("asked", ["prompt", "question", "query"])
@pytest.mark.parametrize("answered", ["completion", "answer", "response", "output"])
def test_prompt_and_completion_under_every_name(asked: str, answered: str) -> None:
    row = {asked: "1 + 1?", answered: " 2 ", "system": "Count."}
    assert turns("prompt", row) == [("system", "Count."), ("user", "1 + 1?"), ("assistant", " 2 ")]
    assert one("completion", row) == Completion("1 + 1?", " 2 ", HERE)


def test_prompt_of_message_lists() -> None:
    row = {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a", "train": False}],
    }
    chat = one("prompt", row)
    assert chat.messages == (Message("system", "S"), Message("user", "q"), Message("assistant", "a", weight=0.0))


def test_completion_joins_nothing_and_may_start_empty() -> None:
    assert one("completion", {"prompt": "", "completion": "a b"}) == Completion("", "a b", HERE)


def test_text_keys() -> None:
    assert one("text", {"text": " a\n"}) == Text(" a\n", HERE)
    assert one("text", {"content": "b"}) == Text("b", HERE)
    assert one("text", {"title": "t", "paragraphs": ["c", "d"]}) == Text("c\nd", HERE)


def test_nothing_is_filled_in() -> None:
    row = {"instruction": "Who are you?", "input": "", "output": "I am {{name}} by {{author}}."}
    assert turns("alpaca", row)[1] == ("assistant", "I am {{name}} by {{author}}.")


def test_formats_by_name() -> None:
    chats = {"alpaca", "sharegpt", "messages", "prompt", "completion", "text"}
    assert set(FORMATS) == chats | {"pairs", "hh", "judge", "ranked", "scores", "labels", "tree", "steps"}
    assert set(FILES) == {"nodes"} and set(FOLDERS) == {"reviews"}
    assert set(KNOWN) == {*FORMATS, *FILES, *FOLDERS} and len(KNOWN) == len(ALL)
