"""Tasks in the token store: what goes in comes out equal, and nothing else changes its files."""

from pathlib import Path

import pytest

from espalier.data.render.form import TaskForm
from espalier.data.store.store import split
from espalier.data.store.task_json import from_line, to_line
from espalier.errors import DataError, RowError
from espalier.types import Message, Origin, Task
from stores import build
from task_stores import opened, questions, renderer, write
from toys import letters

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"a": None, "n": 0.1}}}
FULL = Task(
    (
        Message("system", "Be\ud800."),
        Message("user", "漢字 <|im_end|>", weight=0.5, name="Ada"),
        Message("assistant", "", reasoning="Hm.", tool_calls=(WEATHER,)),
        Message("tool", "5", tool_call_id="x"),
    ),
    answer="1/3",
    verifier="numeric",
    facts={"choices": ["a", "b"], "n": 1e-17, "none": None, "yes": True},
    columns={"level": 3, "tests": [{"input": "1", "output": "2"}]},
    tools=(WEATHER,),
    origin=Origin("t", 7),
    template_args={"enable_thinking": False},
)


def test_a_task_comes_back_equal_from_its_line() -> None:
    for task in (FULL, Task((Message("user", "Q"),), origin=Origin("t", 7))):
        line = to_line(task)
        assert line.count(b"\n") == 1 and line.isascii()
        assert from_line(line, Origin("t", 7)) == task
    assert to_line(Task((Message("user", "Q"),))) == b'{"prompt": [{"role": "user", "content": "Q"}]}\n'


def test_two_rows_by_hand(tmp_path: Path) -> None:
    rows = [{"question": "Hi", "answer": "5", "level": 2}, {"prompt": "Ok", "facts": {"words": ["x"]}}]
    store = opened(tmp_path, write(tmp_path / "t.jsonl", rows)).main[0]
    assert len(store) == 2 and store.holds_tasks
    first = Task((Message("user", "Hi"),), answer="5", columns={"level": 2}, origin=Origin("t", 1))
    assert store.task(0) == first
    assert store.task(1) == Task((Message("user", "Ok"),), facts={"words": ["x"]}, origin=Origin("t", 2))
    (sample,) = store.group(0)
    assert letters(template="chatml").decode(sample.tokens) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert not any(sample.mask) and sample.tokens == renderer().render(first)[0].sample.tokens
    again = opened(tmp_path, str(tmp_path / "t.jsonl")).main[0]
    assert again.folder == store.folder and [again.task(0), again.task(1)] == [store.task(0), store.task(1)]
    with pytest.raises(IndexError):
        store.task(2)


def test_stats_count_tasks_by_what_grades_them(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "5"}, {"prompt": "b", "verifier": "math"}, {"prompt": "b", "verifier": "math"}]
    path = write(tmp_path / "t.jsonl", rows)
    stats = opened(tmp_path, path).main[0].stats
    assert (stats.graded_by, stats.answers, stats.trained, stats.duplicates) == ({"": 1, "math": 2}, 1, 0, 1)
    both = TaskForm(graders=lambda task: ("length", "math") if task.verifier else ("length",), key="length math")
    assert opened(tmp_path, path, tasks=both).main[0].stats.graded_by == {"length": 1, "length + math": 2}


def test_equal_prompts_with_other_answers_are_no_duplicates(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "answer": "5", "id": 1},
        {"prompt": "a", "answer": "6"},
        {"prompt": "a", "answer": "5", "id": 2},
    ]
    store = opened(tmp_path, write(tmp_path / "t.jsonl", rows)).main[0]
    assert store.stats.duplicates == 1
    assert len(set(store.prompts.tolist())) == 1 and store.hashes[0] == store.hashes[2] != store.hashes[1]


def test_equal_prompts_stand_on_one_side_of_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 20}", "answer": str(i)} for i in range(100)]
    store = opened(tmp_path, write(tmp_path / "t.jsonl", rows)).main[0]
    trained, held = split(store, 0.3, 0)
    sides = [{store.task(i).prompt for i in numbers.tolist()} for numbers in (trained, held)]
    assert len(trained) + len(held) == 100 and len(sides[0]) + len(sides[1]) == 20
    assert not sides[0] & sides[1] and sides[1]


def test_rows_that_are_refused_are_listed(tmp_path: Path) -> None:
    rows = [*questions("a", 2), {"question": "long " * 9, "answer": "5"}, {"question": "b"}]
    path = write(tmp_path / "t.jsonl", rows)
    asks = TaskForm(5, lambda task: "" if task.answer else "no answer, which numeric needs", key="numeric")
    with pytest.raises(RowError, match=r"t\.jsonl:3: no room for an answer"):
        opened(tmp_path, path, tasks=asks, max_length=60)
    store = opened(tmp_path, path, tasks=asks, max_length=60, on_bad_row="skip").main[0]
    assert store.stats.reasons == {"no room for an answer": 1, "no answer, which numeric needs": 1}
    assert [store.task(i).answer for i in range(len(store))] == ["0", "1"]
    with pytest.raises(DataError, match=r"no row can be used: no room for an answer \(3\), no answer"):
        opened(tmp_path, path, tasks=asks, max_length=10, on_bad_row="skip")


def test_other_stores_have_no_further_files(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b"])
    assert not store.holds_tasks and not [path.name for path in store.folder.glob("*task*")]
    with pytest.raises(TypeError, match="holds no tasks"):
        store.task(0)
