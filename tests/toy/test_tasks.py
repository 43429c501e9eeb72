"""Problems as tasks: which rows, and that they are read as tasks."""

import json
from pathlib import Path

import pytest

from espalier.data.read import Source, read
from espalier.errors import ConfigError
from espalier.toy import answer_of, problems, write_tasks
from espalier.types import Task


def test_rows_are_the_problems_of_the_split(tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", 20, seed=3, split="test")
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    items = problems(20, 3, "test")
    assert rows == [{"question": item.question, "answer": item.answer} for item in items]
    assert [answer_of(item.solution) for item in items] == [row["answer"] for row in rows]
    write_tasks(tmp_path / "few.jsonl", 5, seed=3, split="test")
    assert (tmp_path / "t.jsonl").read_text().startswith((tmp_path / "few.jsonl").read_text())
    with pytest.raises(ConfigError, match="'train' or 'test'"):
        write_tasks(tmp_path / "t.jsonl", 1, split="dev")  # type: ignore[arg-type]


def test_rows_are_read_as_tasks(tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", 3)
    tasks = list(read(Source(str(tmp_path / "t.jsonl"), consumes="task")))
    for task, item in zip(tasks, problems(3), strict=True):
        assert isinstance(task, Task)
        assert (task.prompt[0].content, task.answer) == (item.question, item.answer)
