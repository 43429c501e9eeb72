"""Rows as tasks: which prompt, which answer, which facts, and what is left to rewards."""

import doctest
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.data.columns.ledger import Ledger
from espalier.data.columns.mapping import Columns
from espalier.data.formats import KNOWN, convert, sniff, tasks
from espalier.data.formats.remarks import ACCEPTED, remarks
from espalier.data.formats.tasks import answers_of, as_task, final
from espalier.data.read import Source, read
from espalier.errors import DataError, RowError
from espalier.types import Completion, Message, Origin, Ranking, Response, Steps, Task, Text, Tree

HERE = Origin("file", 7)
DOCS = Path(__file__).resolve().parents[3] / "docs"


def one(row: dict[str, Any], name: str = "") -> Task:
    (task,) = convert(name or sniff(row, "task") or "none", row, HERE)
    assert isinstance(task, Task) and task.origin == HERE
    return task


def asked(task: Task) -> list[tuple[str, str]]:
    return [(message.role[0], message.content) for message in task.prompt]


def rows(path: Path, *lines: dict[str, Any], columns: tuple[str, ...] = (), ignored: tuple[str, ...] = ()) -> Any:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ledger = Ledger()
    mapping = replace(Columns.parse(columns, ignored), instead=False)
    source = Source(str(path), consumes="task", columns=mapping)
    return list(read(source, ledger)), ledger


def test_worked_examples() -> None:
    assert doctest.testmod(tasks).failed == 0


# ------------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q"}, [("u", "Q")]),
        ({"question": "Q", "system": "S"}, [("s", "S"), ("u", "Q")]),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [("u", "Add.\n1 2")]),
        ({"Body": "Ada has 3 eggs. ", "Question": "How many?"}, [("u", "Ada has 3 eggs. How many?")]),
        ({"question": "Q", "context": "C"}, [("u", "Q\nC")]),
        ({"text": "Write f.", "test_list": ["assert f()"]}, [("u", "Write f.")]),
        ({"input": "Q"}, [("u", "Q")]),
        ({"messages": [{"role": "user", "content": "Q"}]}, [("u", "Q")]),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, [("u", "Q")]),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}] * 2},
            [("u", "Q"), ("a", "A"), ("u", "Q")],
        ),
        (
            {"prompt": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "It is "}]},
            [("u", "Q"), ("a", "It is ")],
        ),
    ],
)
def test_prompts_by_eye(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert sniff(row, "task") == "task"
    assert asked(one(row)) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " "}, "empty prompt"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "no prompt"),
        ({"messages": []}, "no prompt"),
        ({"prompt": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]}, "assistant turn"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "tool result without a call"),
        ({"id": 5}, "missing key"),
    ],
)
def test_rows_without_a_prompt_are_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        one(row, "task")
    assert caught.value.reason.startswith(reason)


def test_nothing_is_a_task_unless_a_run_answers_tasks() -> None:
    for row in ({"question": "1 + 1?", "answer": "#### 2"}, {"problem": "Q", "solution": "\\boxed{2}"}):
        assert sniff(row, "chat") == "prompt" and sniff(row, "ranking") == "prompt"
    assert sniff({"prompt": "Q"}, "chat") is None


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": " 5 "}, "5"),
        ({"answer": 5}, "5"),
        ({"answer": 2.5}, "2.5"),
        ({"answer": ["x"]}, "x"),
        ({"answer": "3+4=7\n#### 1,200"}, "1,200"),
        ({"answer": "So it is $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        ({"answer": "", "final_answer": "6"}, "6"),
        ({"ground_truth": "7", "solution": "\\boxed{8}"}, "7"),
        ({"solution": "First \\boxed{1}, then \\fbox{2} and \\boxed{\\{3, 4\\}}."}, "\\{3, 4\\}"),
        ({"solution": "It is 8."}, ""),
        ({"reward_model": {"style": "rule", "ground_truth": "9"}}, "9"),
        ({"output": "10"}, ""),
    ],
)
def test_answers_by_eye(row: dict[str, Any], answer: str) -> None:
    assert answers_of(row) == ([answer] if answer else [])
    assert one({"prompt": "Q", **row}, "task").answer == answer


def test_an_answer_that_is_no_text_is_refused() -> None:
    for value in ({"value": "a"}, [], [["a"], ["b"]], ["a", None]):
        with pytest.raises(RowError) as caught:
            answers_of({"answer": value})
        assert caught.value.reason == "wrong type"


def test_each_of_several_answers_is_right() -> None:
    """A list is read one by one, equal ones once; the first is the task's answer, all are a fact."""
    row = {"question": "Who?", "answer": ["Ann", " Ann ", "It is \\boxed{Bo}", 7.0, ""]}
    for name in ("task", "math"):
        task = one(row, name)
        assert (task.answer, task.facts) == ("Ann", {"answers": ["Ann", "Bo", "7"]})
        assert list(remarks(name, row)) == [ACCEPTED]
    single = one({"question": "Who?", "answer": ["Ann"], "facts": {"n": 1}})
    assert (single.answer, single.facts) == ("Ann", {"n": 1})
    graded = one({"prompt": "Q", "reward_model": {"ground_truth": ["7", "seven"]}})
    assert (graded.answer, graded.facts) == ("7", {"answers": ["7", "seven"]})
    assert sniff({"question": "Q", "answer": ["#### 1", "#### 2"]}, "task") == "task"


def test_what_is_never_closed_is_no_answer() -> None:
    assert final("\\boxed{1") == "" and final("\\boxed 1") == "" and final("#### ") == ""


# ----------------------------------------------------------------------------------------- verifier, facts, the columns


def test_the_general_form() -> None:
    weather = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    row = {
        "prompt": "Q",
        "answer": "A",
        "verifier": "exact",
        "facts": '{"words": ["x"]}',
        "tools": [weather],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    task = one(row)
    assert (task.answer, task.verifier, task.facts) == ("A", "exact", {"words": ["x"]})
    assert task.tools == ({"type": "function", "function": weather},)
    assert task.template_args == {"enable_thinking": False}
    with pytest.raises(RowError, match="an object, or its JSON"):
        one({"prompt": "Q", "facts": ["x"]})


def test_null_keys_that_a_table_forces_are_left_out() -> None:
    function = {"name": "rate", "parameters": {"properties": {"code": {"type": "string", "enum": None}}}}
    call = {"type": "function", "function": {"name": "rate", "arguments": {"code": "EUR", "day": None}}}
    prompt = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    task = one({"prompt": [*prompt, {"role": "tool", "content": "1"}], "tools": [function]})
    assert task.tools[0]["function"]["parameters"] == {"properties": {"code": {"type": "string"}}}
    assert task.prompt[1].tool_calls[0]["function"]["arguments"] == {"code": "EUR"}


def test_columns_that_nobody_reads_reach_rewards_and_are_listed(tmp_path: Path) -> None:
    long = "Because " * 30
    tests = [{"input": "1", "output": "2"}]
    row = {"question": "Q", "answer": "A", "rationale": long, "tests": tests, "level": 3, "none": None, "seed": 1}
    (task,), ledger = rows(tmp_path / "t.jsonl", row, ignored=("seed",))
    assert task.columns == {"rationale": long, "tests": tests, "level": 3}
    assert ledger.dropped == {}
    assert [line for line in ledger.lines() if line.startswith("kept for rewards")] == [
        "kept for rewards: rationale (1 of 1 rows, about 239 characters), tests (1 of 1 rows), level (1 of 1 rows)"
    ]
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))).dropped == {}


def test_what_a_question_is_about_and_media_must_not_be_left_out(tmp_path: Path) -> None:
    row = {"question": "Q", "passage": "Long ago there was " * 9, "image": "a.png"}
    _, ledger = rows(tmp_path / "t.jsonl", row)
    assert sorted(ledger.dropped) == ["image", "passage"]
    with pytest.raises(DataError, match="--columns context=passage, or leave it out"):
        ledger.refuse("t")
    (task,), _ = rows(tmp_path / "t.jsonl", row, columns=("context=passage",), ignored=("image",))
    assert asked(task) == [("u", "Q\n" + row["passage"])] and task.columns == {}


def test_mapped_fields_stand_beside_a_conversation(tmp_path: Path) -> None:
    """For conversations a mapped answer takes the place of the messages."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Yes."}]
    row = {"messages": turns, "truth": "A"}
    (task,), ledger = rows(tmp_path / "t.jsonl", row, columns=("answer=truth", "verifier==exact"))
    assert (asked(task), task.answer, task.verifier, task.columns) == ([("u", "Q")], "A", "exact", {})
    assert tasks.CUT in ledger.notes and ledger.notes[tasks.CUT] == 1


def test_prompts_that_the_policy_goes_on_with_are_said(tmp_path: Path) -> None:
    begun = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "It is "}]
    _, ledger = rows(tmp_path / "t.jsonl", {"prompt": begun}, {"prompt": {"messages": begun}}, {"prompt": "Q"})
    assert ledger.notes == {tasks.BEGUN: 2}
    _, ledger = rows(tmp_path / "t.jsonl", {"messages": ["Q", "A"]}, {"messages": ["Q", "A", "R"]})
    assert ledger.notes[tasks.CUT] == 1


def test_bad_rows_are_listed_with_their_reason_and_a_mapping_to_try(tmp_path: Path) -> None:
    got, _ = rows(tmp_path / "t.jsonl", {"q_text": "What is one and one?", "truth": "2"})
    path = f"{tmp_path}/t.jsonl:1"
    assert str(got[0]).startswith(f"{path}: no known format; got the keys q_text, truth; expected a prompt (question")
    assert "Try --columns prompt=q_text answer=truth" in str(got[0])
    got, ledger = rows(tmp_path / "t.jsonl", {"prompt": "Q"}, {"prompt": ""})
    assert [type(item) for item in got] == [Task, RowError] and ledger.rows == 1
    assert got[1].where == f"{tmp_path}/t.jsonl:2"


# ----------------------------------------------------------------------------------------------------- other examples


def test_other_examples_are_prompts_without_their_answers() -> None:
    user, answer = Message("user", "Q"), Message("assistant", "A")
    assert as_task(Ranking((user,), (Response(answer),), origin=HERE)) == Task((user,), origin=HERE)
    assert as_task(Steps((user,), ("A",), (1.0,), origin=HERE)) == Task((user,), origin=HERE)
    for example in (Text("A text."), Completion("Q", "A"), Tree(())):
        with pytest.raises(RowError, match="no prompt"):
            as_task(example)


def test_seed_tasks_are_one_task_for_each_instance(tmp_path: Path) -> None:
    instances = [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]
    got, ledger = rows(tmp_path / "t.jsonl", {"instruction": "Add.", "instances": instances, "name": "add"})
    assert [asked(task) for task in got] == [[("u", "Add.\n1 2")], [("u", "Add.\n2 2")]]
    assert [task.columns for task in got] == [{"name": "add"}] * 2
    assert ledger.notes == {tasks.CUT: 2}


# ----------------------------------------------------------------------------------------------------------- documents


def test_rows_of_the_document_are_read_as_it_says() -> None:
    text = (DOCS / "rollouts.md").read_text(encoding="utf-8")
    lines = text.split("```jsonl\n")[1].split("```")[0].splitlines()
    read_as = []
    for line in lines:
        name, _, row = line.partition(" ")
        assert sniff(json.loads(row), "task") == name, line
        task = one(json.loads(row))
        read_as.append((name, task.answer, task.verifier, sorted(task.facts)))
    assert read_as == [
        ("gsm8k", "7", "", []),
        ("math", "\\frac{1}{2}", "", []),
        ("math", "\\frac{1}{2}", "", []),
        ("choice", "A", "", ["choices"]),
        ("choice", "A", "", ["choices"]),
        ("choice", "A", "", ["choices"]),
        ("ifeval", "", "ifeval", ["instruction_id_list", "kwargs"]),
        ("task", "", "", []),
        ("task", "4", "", []),
        ("task", "7", "", ["answers"]),
        ("task", "", "", []),
        ("task", "", "regex", ["pattern"]),
    ]


def test_the_document_names_every_format() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    table = text.split("| format | fields |")[1].split("\n\n")[0]
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(KNOWN)
