"""Every format is one object, listed once, found by the first match, and named in the help."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest

from espalier.config.sections import DataConfig
from espalier.data import formats
from espalier.data.formats import ALL, KNOWN, chats, convert, sniff
from espalier.data.formats.format import Format
from espalier.errors import RowError
from espalier.types import Consumes, Origin

MODULES: list[ModuleType] = [
    importlib.import_module(f"{formats.__name__}.{info.name}") for info in pkgutil.iter_modules(formats.__path__)
]


def last(module: ModuleType) -> str:
    return str(module.__name__.rsplit(".", 1)[-1])


# ------------------------------------------------------------------------------------------------------------ the list


def test_every_format_file_ends_in_a_format_of_its_name_that_is_listed() -> None:
    """A format that `ALL` lacks fails here, and so does a file that has two, or one under another name."""
    owned = {last(m): list(vars(m).values())[-1] for m in MODULES if "FORMAT" in vars(m)}
    assert {name: form.name for name, form in owned.items()} == {name: name for name in owned}
    assert sorted(owned) == sorted(form.name for form in ALL)
    assert all(owned[form.name] is form for form in ALL)
    for module in MODULES:
        objects = [name for name, value in vars(module).items() if isinstance(value, Format)]
        assert objects in ([], ["FORMAT"]), module.__name__


def test_the_help_names_every_format() -> None:
    """`config` may not import `data`, so its help text repeats the names."""
    words = re.findall(r"\w+", DataConfig.__pydantic_fields__["format"].description or "")
    assert [name for name in ("auto", *KNOWN) if name not in words] == []


@pytest.mark.parametrize("module", MODULES, ids=last)
def test_worked_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# ----------------------------------------------------------------------------------------------------------- the order


def test_formats_are_compared_in_this_order() -> None:
    judgements = ["hh", "pairs", "compared", "judge", "tree", "nodes", "prm800k", "steps", "ranked", "labels", "scores"]
    conversations = ["messages", "sharegpt", "alpaca", "prompt", "transcript", "text"]
    tasks = ["ifeval", "choice", "gsm8k", "math", "task"]
    assert [form.name for form in ALL if form.looks] == [*tasks, *judgements, *conversations, "reviews"]
    assert [form.name for form in ALL if not form.looks] == ["completion"]
    assert [form.name for form in chats.CHATS] == conversations


HH = {"chosen": "Human: Q\n\nAssistant: a", "rejected": "Human: Q\n\nAssistant: b"}
PAIR = {"chosen": "a", "rejected": "b"}
JUDGED = "###The instruction to evaluate:\nQ\n\n###Response to evaluate:\nA\n"
JUDGE = {"instruction": JUDGED, "score": 4}
TREE = {"text": "Q", "replies": []}
NODE = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Q"}
STEPS = {"steps": ["a"], "labels": [True]}
RANKED = {"responses": ["a"], "ranks": [1]}
LABEL = {"label": True}
MESSAGES = {"messages": [{"role": "user", "content": "Q"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Q"}]}
ALPACA = {"instruction": "Q", "output": "a"}
PROMPT = {"prompt": "Q", "response": "a"}
TEXT = {"text": "t"}


@pytest.mark.parametrize(
    ("row", "chat", "ranking", "steps"),
    [
        # Two formats fit each row: the earlier one counts, as rows were told apart when they were cached.
        (HH, "hh", "hh", "hh"),
        (HH | JUDGE, "hh", "hh", "hh"),
        (PAIR | JUDGE, "pairs", "pairs", "pairs"),
        (PAIR | RANKED, "pairs", "pairs", "pairs"),
        (PAIR | PROMPT | LABEL, "pairs", "pairs", "pairs"),
        (JUDGE | TREE, "judge", "judge", "judge"),
        (JUDGE | {"steps": []}, "judge", "judge", "judge"),
        (ALPACA | JUDGE, "alpaca", "judge", "alpaca"),
        (TREE | NODE, "tree", "tree", "tree"),
        (TREE | STEPS, "tree", "tree", "tree"),
        (NODE | STEPS, "nodes", "nodes", "nodes"),
        (NODE | RANKED, "nodes", "nodes", "nodes"),
        (STEPS | RANKED, "steps", "steps", "steps"),
        (STEPS | PROMPT | LABEL, "steps", "steps", "steps"),
        (STEPS | MESSAGES, "messages", "messages", "messages"),
        (RANKED | PROMPT | LABEL, "ranked", "ranked", "steps"),
        (RANKED | MESSAGES, "ranked", "ranked", "steps"),
        (PROMPT | LABEL | {"score": 3}, "labels", "labels", "labels"),
        (PROMPT | {"label": "good", "score": 3}, "prompt", "labels", "prompt"),
        (MESSAGES | {"score": 3}, "messages", "scores", "messages"),
        (MESSAGES | ALPACA, "messages", "messages", "messages"),
        (SHAREGPT | ALPACA | PROMPT, "sharegpt", "sharegpt", "sharegpt"),
        (ALPACA | {"prompt": "Q"}, "alpaca", "alpaca", "alpaca"),
        (PROMPT | TEXT, "prompt", "prompt", "prompt"),
        (TEXT | LABEL | {"score": 3}, "text", "text", "text"),
        (LABEL, None, None, None),
        # A list of turns is told apart by its turns; if they do not say, by its name.
        ({"messages": [{"from": "human", "role": "user"}]}, "messages", "messages", "messages"),
        ({"conversations": ["?", {"role": "user"}]}, "messages", "messages", "messages"),
        ({"conversations": [{"text": "?"}]}, "sharegpt", "sharegpt", "sharegpt"),
        ({"conversation": [{"text": "?"}]}, "messages", "messages", "messages"),
        ({"messages": "?", "conversations": []}, "messages", "messages", "messages"),
        ({"conversations": None, "text": "t"}, "text", "text", "text"),
    ],
)
def test_of_two_formats_that_fit_the_earlier_one_counts(
    row: dict[str, Any], chat: str | None, ranking: str | None, steps: str | None
) -> None:
    consumed: tuple[Consumes, ...] = ("chat", "ranking", "steps")
    assert [sniff(row, consumes) for consumes in consumed] == [chat, ranking, steps]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Q", "instruction_id_list": ["a"], "choices": ["a", "b"], "answer": 0}, "ifeval"),
        ({"question": "Q", "choices": ["a", "b"], "answer": "#### A"}, "choice"),
        ({"problem": "Q", "answer": "#### 1", "solution": "\\boxed{1}"}, "gsm8k"),
        ({"problem": "Q", "solution": "\\boxed{1}", "messages": []}, "math"),
        (HH | {"prompt": "Q"}, "task"),
        (MESSAGES | ALPACA | PROMPT, "task"),
        (STEPS | PROMPT, "task"),
        (SHAREGPT, "task"),
        (HH, "hh"),
        (TREE, "tree"),
        ({"instruction": "Q", "instances": []}, "alpaca"),
        (TEXT, "text"),
    ],
)
def test_a_run_on_tasks_takes_the_prompt_of_what_it_can(row: dict[str, Any], name: str) -> None:
    assert sniff(row, "task") == name


# ---------------------------------------------------------------------------------------------------------- the reader


@pytest.mark.parametrize("name", [form.name for form in ALL if form.unit == "row"])
def test_every_reader_of_rows_refuses_a_row_without_its_keys(name: str) -> None:
    with pytest.raises(RowError, match="missing key"):
        convert(name, {"id": 7}, Origin("file", 1))
    with pytest.raises(RowError, match="wrong type"):
        convert(name, [], Origin("file", 1))


def test_a_row_with_broken_turns_is_sniffed_and_refused_where_it_is_read() -> None:
    row = {"messages": '[{"role": "user", "content": "Q"'}
    assert sniff(row) == "messages"
    with pytest.raises(RowError, match="messages"):
        convert("messages", row, Origin())
