"""What stands beside a conversation is part of it, in every format that has a prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from conversations import one, turns
from espalier.data.columns.ledger import Ledger
from espalier.data.formats import convert, sniff
from espalier.data.read import Source, read
from espalier.errors import DataError, RowError
from espalier.types import Chat, Message, Origin, Ranking

ASK = [{"role": "user", "content": "Why?"}]
SAY = [*ASK, {"role": "assistant", "content": "So."}]
THOUGHT = "Rain falls from clouds, and whatever falls from clouds is wet, so that whoever stands in it is wet as well."
OTHER_THOUGHT = (
    "Clouds are made of small drops that fall once they grow heavy enough, which people below them call rain."
)


@pytest.mark.parametrize("key", ["system", "system_prompt", "custom_system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": SAY},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"question": "Why?", "response": "So."},
        {"instruction": "Why?", "output": "So."},
        {"prompt": ASK, "completion": "So."},
    ],
)
def test_a_system_text_in_a_column_of_its_own_is_the_first_turn(key: str, row: dict[str, Any]) -> None:
    told = [("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")]
    assert turns(str(sniff(row)), row | {key: "Be brief."}) == told
    assert turns(str(sniff(row)), row | {key: ""}) == told[1:]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "responses": ["So.", "No."], "ranks": [0, 1]},
        {"prompt": "Why?", "response": "So.", "label": True},
        {"prompt": "Why?", "response": "So.", "score": 3},
        {"prompt": "Why?", "steps": ["So."], "labels": [True]},
    ],
)
def test_a_judged_prompt_has_what_stands_beside_it(row: dict[str, Any]) -> None:
    row |= {"system_prompt": "Be brief.", "history": [["Hi", "Hello"]], "context": "It rains."}
    (example,) = convert(str(sniff(row, "ranking")), row, Origin())
    assert [(m.role, m.content) for m in example.prompt] == [  # type: ignore[union-attr]
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Why?\nIt rains."),
    ]


def test_two_system_texts_are_refused_and_one_said_twice_is_one() -> None:
    row = {"messages": [{"role": "system", "content": "Be brief."}, *SAY]}
    assert turns("messages", row | {"system": "Be brief."})[0] == ("system", "Be brief.")
    for more in ({"system": "Be long."}, {"system": "Be brief.", "system_prompt": "Be long."}):
        with pytest.raises(RowError, match="two system"):
            convert("messages", row | more, Origin())


def test_earlier_turns_are_pairs_objects_or_turns() -> None:
    row: dict[str, Any] = {"query": "Why?", "response": "So."}
    earlier = [("user", "Hi"), ("assistant", "Hello")]
    for history in (
        [["Hi", "Hello"]],
        [{"user": "Hi", "assistant": "Hello"}],
        [{"role": r, "content": c} for r, c in earlier],
    ):
        assert turns("prompt", row | {"history": history}) == [*earlier, ("user", "Why?"), ("assistant", "So.")]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"question": "Which?", "context": "Cherries are red.", "answer": "Cherries"}, "Which?\nCherries are red."),
        ({"prompt": "Sum up.", "input": "Cherries are red.", "response": "Red."}, "Sum up.\nCherries are red."),
        ({"instruction": "Sum up.", "input": "", "context": "It rains.", "output": "Rain."}, "Sum up.\nIt rains."),
        ({"prompt": "Sum up: cherries are always red.", "input": "cherries are always red.", "response": "Red."},
         "Sum up: cherries are always red."),
        ({"input": "Why?", "output": "So."}, "Why?"),
    ],
)  # fmt: skip
def test_a_context_stands_below_the_prompt_unless_it_is_in_it(row: dict[str, Any], text: str) -> None:
    assert turns(str(sniff(row)), row)[0] == ("user", text)


def test_a_context_of_turns_belongs_to_the_first_question() -> None:
    row = {"messages": [*SAY, *ASK, SAY[1]], "context": "It rains."}
    assert [text for role, text in turns("messages", row) if role == "user"] == ["Why?\nIt rains.", "Why?"]


def test_functions_inside_a_system_message_are_offered() -> None:
    tool = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    inside = [{"role": "system", "content": "Use them.", "tools": [tool]}, *SAY]
    assert one("messages", {"messages": inside}).tools == ({"type": "function", "function": tool},)
    pair: Ranking = one("pairs", {"prompt": inside[:2], "chosen": "So.", "rejected": "No."})
    assert pair.tools == ({"type": "function", "function": tool},)
    with pytest.raises(RowError, match="two lists of tools"):
        one("messages", {"messages": inside, "tools": [{"name": "sub"}]})


@pytest.mark.parametrize("key", ["train", "training", "trainable", "loss", "weight"])
def test_turns_say_themselves_whether_they_are_trained(key: str) -> None:
    row = {"messages": [*SAY, ASK[0], {**SAY[1], key: 0 if key == "weight" else False}]}
    assert [m.weight for m in one("messages", row).messages] == [None, None, None, 0.0]
    row["messages"][3]["train"] = True
    if key != "train":
        with pytest.raises(RowError, match="contradicting weight"):
            one("messages", row)


def test_reasoning_beside_an_answer_goes_before_it_and_a_switch_does_not() -> None:
    row = {"question": "Why?", "answer": "So."}
    for key in ("reasoning", "thinking", "Complex_CoT"):
        assert one("prompt", row | {key: "Rain is wet."}).messages[1] == Message("assistant", "So.", "Rain is wet.")
    assert one("prompt", row | {"reasoning": "on"}).messages[1] == Message("assistant", "So.")
    assert one("prompt", row | {"reasoning": ["Rain is wet."]}).messages[1].reasoning == "Rain is wet."


@pytest.mark.parametrize("switch", ["on", "off", True, False, "", 1, ["on"]])
def test_reasoning_is_found_behind_a_switch(switch: Any, tmp_path: Path) -> None:
    for row in ({"prompt": "Why?", "response": "So."}, {"instruction": "Why?", "output": "So."}):
        ledger, found = _read(tmp_path, row | {"reasoning": switch, "thinking": THOUGHT})
        assert found.messages[1] == Message("assistant", "So.", THOUGHT)
        assert "thinking" in ledger.read and "reasoning" not in ledger.read and not ledger.dropped


@pytest.mark.parametrize(
    "value", [[THOUGHT, OTHER_THOUGHT], {"content": THOUGHT}, [{"text": THOUGHT}], [[THOUGHT, OTHER_THOUGHT]]]
)
@pytest.mark.parametrize("beside", [{}, {"thinking": "Rain is wet."}, {"reasoning_content": "on"}])
def test_reasoning_that_is_not_one_text_refuses_the_source(value: Any, beside: dict[str, str], tmp_path: Path) -> None:
    ledger, found = _read(tmp_path, {"prompt": "Why?", "response": "So.", "reasoning": value} | beside)
    assert found.messages[1].reasoning == (beside.get("thinking"))
    assert "reasoning" not in ledger.read
    with pytest.raises(DataError, match="leaves out reasoning"):
        ledger.refuse("rows.jsonl")


def test_a_second_reasoning_that_differs_refuses_the_source(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response": "So.", "reasoning": THOUGHT}
    assert not _read(tmp_path, row | {"thinking": THOUGHT})[0].dropped
    assert list(_read(tmp_path, row | {"thinking": OTHER_THOUGHT})[0].dropped) == ["thinking"]


def _read(folder: Path, row: dict[str, Any]) -> tuple[Ledger, Chat]:
    """What is read of a row, and what it becomes."""
    path, ledger = folder / "rows.jsonl", Ledger()
    path.write_text(json.dumps(row), encoding="utf-8")
    (found,) = read(Source(str(path)), ledger)
    assert isinstance(found, Chat)
    return ledger, found


def test_turns_may_be_the_json_of_a_list_have_capitals_or_hold_two_at_once() -> None:
    said = [("user", "Why?"), ("assistant", "So.")]
    text = '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]'
    assert turns("messages", {"messages": text}) == said
    assert (
        turns("sharegpt", {"conversations": [{"from": "User", "value": "Why?"}, {"from": "Assistant", "value": "So."}]})
        == said
    )
    assert turns("sharegpt", {"conversation": [{"input": "Why?", "output": "So."}]}) == said
    assert turns("prompt", {"Question": "Why?", "Answer": "So."}) == said


@pytest.mark.parametrize(
    "earlier", ['[["Hi", "Hello!"]]', '[{"question": "Hi", "answer": "Hello!"}]', "User: Hi\nAssistant: Hello!"]
)
def test_earlier_turns_may_be_written_in_a_text(earlier: str) -> None:
    (chat,) = convert("prompt", {"prompt": "Bye", "response": "Bye!", "history": earlier}, Origin())
    assert isinstance(chat, Chat)
    assert [message.content for message in chat.messages] == ["Hi", "Hello!", "Bye", "Bye!"]


def test_a_context_may_be_a_list_of_texts() -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    for row in ({"question": "Why?", "answer": "So."}, {"messages": turns}):
        (chat,) = convert(sniff(row) or "", row | {"context": ["It rains.", "It is cold."]}, Origin())
        assert isinstance(chat, Chat)
        assert chat.messages[0].content == "Why?\nIt rains.\nIt is cold."
