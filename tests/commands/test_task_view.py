"""Tasks as `espalier inspect` shows them: the prompt, and below it what grades the answer."""

import doctest
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from espalier.algorithms.sft import SFT
from espalier.algorithms.traits import Traits
from espalier.assembly import data as assembled
from espalier.assembly.runs import RUNS
from espalier.commands import task_view
from espalier.commands.inspect import run
from espalier.commands.rows_page import html
from espalier.commands.rows_view import show
from espalier.config.sections import DataConfig, InspectConfig, LoopConfig, ModelConfig
from espalier.data.render.form import Form, TaskForm
from espalier.data.render.renderer import Renderer
from espalier.embedded import path as embedded
from espalier.types import Task
from task_stores import write
from toys import letters, user

CHATML = letters(template="chatml")
FORM = Form("task", tasks=TaskForm(graders=lambda task: ("numeric", "length"), key="x"))
TASK = Task((user("1+1?"),), answer="2", facts={"n": 1}, columns={"level": 3, "note": "x" * 200})


def row() -> list[Any]:
    return [("d:1", Renderer(CHATML, form=FORM).render(TASK))]


def test_worked_example() -> None:
    assert doctest.testmod(task_view).failed == 0


def test_a_task_is_its_prompt_and_what_grades_it() -> None:
    out = io.StringIO()
    show(row(), CHATML, Console(file=out, width=300, no_color=True))
    assert out.getvalue().splitlines()[:8] == [
        "row 1  d:1  23 tokens  prompt of a task",
        "⟨|im_start|⟩user⏎",
        "1+1?⟨|im_end|⟩⏎",
        "⟨|im_start|⟩assistant⏎",
        "",
        "graded by: numeric, length",
        "answer: 2",
        "facts: n 1",
    ]
    assert f"columns: level 3, note {'x' * 160}... (200 characters)" in out.getvalue()
    assert out.getvalue().splitlines()[-2:] == [
        "1 prompt to answer, 23 tokens; 1 with an answer; graded by numeric (1), length (1)",
        "⟨control token⟩  ⏎ newline",
    ]


def test_the_page_says_the_same(tmp_path: Path) -> None:
    html(row(), CHATML, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h2>answer: 2</h2>" in page and "prompt of a task" in page
    assert "<p>1 prompt to answer, 23 tokens; 1 with an answer; graded by numeric (1), length (1).\n" in page
    # Nothing here is trained, so nothing is said of it.
    body = page.partition("<body>")[2]
    assert "trained" not in body and body.count("data-tip") == 23


def test_a_command_that_answers_tasks_inspects_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any command whose algorithm consumes tasks: here sft, were it one."""
    monkeypatch.setattr(SFT, "traits", Traits(consumes="task"))
    form = Form("task", tasks=TaskForm(needs=lambda task: "" if task.answer else "numeric needs an answer", key="y"))
    monkeypatch.setattr(assembled, "form_of", lambda config, unread=None: form)
    data = write(tmp_path / "t.jsonl", [{"question": "1+1?"}, {"question": "2+2?", "answer": "4", "level": 1}])
    config = RUNS["sft"](
        model=ModelConfig(model=str(embedded()), template="plain"),
        data=DataConfig(data=(data,)),
        loop=LoopConfig(out="x"),
    )
    run(config, InspectConfig())
    out = capsys.readouterr().out
    assert f"rejected: {data}:1: numeric needs an answer; got no verifier, no answer, facts: none" in out
    assert "2+2?" in out and "answer: 4" in out and "columns: level 1" in out
    assert "t: kept for rewards: level (1 of 2 rows" in out
