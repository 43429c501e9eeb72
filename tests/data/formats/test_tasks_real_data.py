"""Files that others wrote, as tasks: how many rows, and the answers that the raw files have."""

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.config.sections import DataConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.dataset import open_data
from espalier.data.formats.tasks import CUT
from espalier.data.read import parse_source, read
from espalier.data.render.form import Form, TaskForm
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Task
from toys import minimind

pytestmark = pytest.mark.real_data

ROWS = {
    # name: format, tasks, those with an answer, columns that are kept for rewards
    "gsm8k_train.jsonl": ("gsm8k", 7473, 7473, ()),
    "math500.json": ("math", 500, 500, ("solution", "subject", "level", "unique_id")),
    "svamp.jsonl": ("task", 1000, 1000, ("Equation", "Type", "ID", "idx")),
    "cmath_zh.jsonl": ("task", 600, 600, ("grade", "reasoning_step", "num_digits")),
    "aqua_test.jsonl": ("choice", 254, 254, ("rationale",)),
    "ifeval.jsonl": ("ifeval", 353, 0, ("key",)),
    "ifeval_gpt4_responses.jsonl": ("task", 352, 0, ("response",)),
    "HumanEval.jsonl": ("task", 164, 0, ("task_id", "entry_point", "canonical_solution", "test")),
    "mbpp_prompt_val_train.jsonl": (
        "task",
        474,
        0,
        ("code", "task_id", "test_setup_code", "test_list", "challenge_test_list"),
    ),
}


def raw(shared: Path, name: str) -> list[dict[str, Any]]:
    text = gzip.decompress((shared / f"data/{name}.gz").read_bytes()).decode()
    rows: list[dict[str, Any]] = (
        json.loads(text) if name.endswith(".json") else list(map(json.loads, text.splitlines()))
    )
    return rows


def tasks(shared: Path, name: str, ledger: Ledger | None = None) -> list[Any]:
    return list(read(replace(parse_source(str(shared / f"data/{name}.gz")), consumes="task"), ledger))


@pytest.mark.parametrize("name", ROWS)
def test_every_verifiable_file_reads_fully(shared: Path, name: str) -> None:
    form, count, answers, columns = ROWS[name]
    ledger = Ledger()
    got = tasks(shared, f"verifiable/{name}", ledger)
    assert all(isinstance(task, Task) for task in got) and len(got) == count
    assert len(raw(shared, f"verifiable/{name}")) == count
    assert (ledger.format, ledger.guessed, ledger.dropped) == (form, True, {})
    assert sum(bool(task.answer) for task in got) == answers
    assert tuple(got[0].columns) == columns
    ledger.refuse(name)


def test_answers_are_those_of_the_raw_rows(shared: Path) -> None:
    gsm = raw(shared, "verifiable/gsm8k_train.jsonl")
    expected = [re.findall(r"#### (\S+)\Z", row["answer"])[0] for row in gsm]
    assert [task.answer for task in tasks(shared, "verifiable/gsm8k_train.jsonl")] == expected
    math = raw(shared, "verifiable/math500.json")
    got = tasks(shared, "verifiable/math500.json")
    assert [task.answer for task in got] == [row["answer"].strip() for row in math]
    svamp = raw(shared, "verifiable/svamp.jsonl")
    got = tasks(shared, "verifiable/svamp.jsonl")
    assert [task.answer for task in got] == [f"{row['Answer']:.12g}" for row in svamp]
    assert got[0].prompt[0].content.endswith("organized into 93 groups How big is each group of bananas?")
    aqua = raw(shared, "verifiable/aqua_test.jsonl")
    got = tasks(shared, "verifiable/aqua_test.jsonl")
    assert [task.answer for task in got] == [row["correct"] for row in aqua]
    for task, row in zip(got, aqua, strict=True):
        assert [f"{letter}){text}" for letter, text in zip("ABCDE", task.facts["choices"], strict=True)] == [
            re.sub(r"\A(.\))\s*", r"\1", option).strip() for option in row["options"]
        ]
    ifeval = tasks(shared, "verifiable/ifeval.jsonl")
    assert Counter(len(task.facts["kwargs"]) for task in ifeval) == Counter(
        len(row["instruction_id_list"]) for row in raw(shared, "verifiable/ifeval.jsonl")
    )
    assert {task.verifier for task in ifeval} == {"ifeval"}


def test_the_last_box_of_a_solution_is_its_answer(shared: Path, tmp_path: Path) -> None:
    """MATH500 has both: without the answers, the solutions give the same."""
    rows = raw(shared, "verifiable/math500.json")
    lines = [json.dumps({"problem": row["problem"], "solution": row["solution"]}) for row in rows]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    got = list(read(replace(parse_source(str(tmp_path / "m.jsonl")), consumes="task")))
    assert [task.answer for task in got if isinstance(task, Task)] == [row["answer"] for row in rows]


@pytest.mark.parametrize("name", ["math500_answer_pairs_gpt.json", "math500_answer_pairs_qwen3.json"])
def test_rows_without_a_prompt_are_rejected(shared: Path, name: str) -> None:
    got = tasks(shared, f"verifiable/{name}")
    assert Counter(error.reason for error in got if isinstance(error, RowError)) == {"no known format": 500}


def test_conversations_and_instructions_are_prompts(shared: Path) -> None:
    listed = {entry["path"]: entry["rows"] for entry in json.loads((shared / "data/MANIFEST.json").read_text())}
    files = {path: rows for path, rows in listed.items() if path.startswith("sft/")}
    assert len(files) == 12
    for path, rows in files.items():
        ledger = Ledger()
        got = tasks(shared, path.removesuffix(".gz"), ledger)
        assert all(isinstance(task, Task) for task in got), path
        assert len({task.origin.line for task in got}) == len(got) == rows, path
        assert all(task.prompt[-1].role in ("user", "tool") for task in got), path
        alone = ledger.format == "task" and "output" in got[0].columns  # instructions without turns
        assert ledger.notes.get(CUT, 0) == (0 if alone else rows), path


def test_tasks_come_back_from_the_store_as_they_were_read(shared: Path, tmp_path: Path) -> None:
    names = ("verifiable/math500.json", "verifiable/ifeval.jsonl", "sft/llamafactory_reason_tool_use_demo_50.jsonl")
    paths = tuple(str(shared / f"data/{name}.gz") for name in names)
    renderer = Renderer(minimind(shared), max_length=2048, form=Form("task", tasks=TaskForm(max_tokens=256)))
    config = DataConfig(data=paths, on_bad_row="skip")
    opened = open_data(config, renderer, cache=tmp_path, seed=0)
    for store, name in zip(opened.main, names, strict=True):
        by_line = {task.origin.line: task for task in tasks(shared, name)}
        assert store.stats.rows == len(by_line) and store.stats.kept == len(store) > 0
        for i in range(len(store)):
            assert store.task(i) == by_line[store.origin(i).line]
            assert len(store.group(i)[0]) + 256 <= 2048
    assert opened.main[1].stats.graded_by == {"ifeval": 353}
