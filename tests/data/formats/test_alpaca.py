"""Alpaca rows, each by an example that can be checked by eye."""

from conversations import HERE, turns
from espalier.data.formats import convert
from espalier.data.formats.alpaca import alpaca_prompt
from espalier.types import Chat


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
