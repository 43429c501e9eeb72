"""Which prompts a step draws, in which epoch, which take their place, and which are held out."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from espalier.config.sections import DataConfig
from espalier.data.dataset import open_data
from espalier.data.tasks import TaskData, shared_prompts
from espalier.errors import DataError
from stores import FakeRenderer
from task_stores import opened, questions, write


def data(folder: Path, *sources: str, prompts: int = 4, epochs: float = 1.0, steps: int = 0, **config: Any) -> TaskData:
    return TaskData(opened(folder, *sources, **config), seed=0, prompts_per_step=prompts, epochs=epochs, steps=steps)


def drawn(tasks: TaskData, step: int) -> list[tuple[int, int]]:
    return [(prompt.row, epoch) for prompt, epoch in tasks.prompts(step)]


def test_each_epoch_draws_every_row_once(tmp_path: Path) -> None:
    tasks = data(tmp_path, write(tmp_path / "a.jsonl", questions("a", 10)), epochs=3)
    assert tasks.steps == 8 and len(tasks.prompts(7)) == 2
    line = [pair for step in range(8) for pair in drawn(tasks, step)]
    assert [epoch for _, epoch in line] == [0] * 10 + [1] * 10 + [2] * 10
    for epoch in range(3):
        assert sorted(row for row, e in line if e == epoch) == list(range(10))
    assert [tasks.epoch_of(step) for step in (0, 5, 8)] == [0.0, 2.0, 3.0]
    prompt, _ = tasks.prompts(0)[0]
    assert prompt.task.prompt[0].content == f"a{prompt.row}" and prompt.task.answer == str(prompt.row)
    assert prompt.tokens == tasks.opened.main[0].group(prompt.row)[0].tokens


def test_a_step_may_hold_several_passes_over_few_rows(tmp_path: Path) -> None:
    tasks = data(tmp_path, write(tmp_path / "a.jsonl", questions("a", 3)), prompts=8, steps=2)
    pairs = [*drawn(tasks, 0), *drawn(tasks, 1)]
    assert len(pairs) == len(set(pairs)) == 16
    assert Counter(epoch for _, epoch in pairs) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 1}


def test_no_number_of_prompts_draws_all_of_them_in_each_step(tmp_path: Path) -> None:
    tasks = data(tmp_path, write(tmp_path / "a.jsonl", questions("a", 5)), prompts=0, epochs=2)
    assert tasks.steps == 2
    for step in (0, 1):
        assert sorted(drawn(tasks, step)) == [(row, step) for row in range(5)]


def test_rows_are_numbered_over_all_sources_and_proportions_hold(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", questions("a", 6))
    second = write(tmp_path / "b.jsonl", questions("b", 3))
    held = write(tmp_path / "c.jsonl", questions("c", 2))
    tasks = data(tmp_path, first, f"{second}=0.5", prompts=4, steps=6, eval_data=(held,))
    pairs = [pair for step in range(6) for pair in tasks.prompts(step)]
    for prompt, _ in pairs:
        content = prompt.task.prompt[0].content
        assert prompt.row == int(content[1:]) + (6 if content[0] == "b" else 0)
    from_second = [(prompt.row, epoch) for prompt, epoch in pairs if prompt.row >= 6]
    # 12 of 24 draws, each row once in each of its own source's passes.
    assert len(from_second) == len(set(from_second)) == 12 and {epoch for _, epoch in from_second} == {0, 1, 2, 3}
    assert [prompt.row for prompt in tasks.held_out()] == [9, 10]


def test_refills_follow_from_seed_and_step_and_go_on_where_they_ended(tmp_path: Path) -> None:
    tasks = data(tmp_path, write(tmp_path / "a.jsonl", questions("a", 20)), prompts=4, steps=3)
    taken = {row for row, _ in drawn(tasks, 1)}
    wave = tasks.refill(1, 3, taken)
    assert [epoch for _, epoch in wave] == [-2, -2, -2]
    rows = [prompt.row for prompt, _ in wave]
    assert not set(rows) & taken and len(set(rows)) == 3
    assert [prompt.row for prompt, _ in tasks.refill(1, 5, taken)][:3] == rows
    later = [prompt.row for prompt, _ in tasks.refill(1, 2, taken | set(rows))]
    assert later == [prompt.row for prompt, _ in tasks.refill(1, 5, taken)][3:]
    assert len(tasks.refill(1, 99, taken)) == 16 and tasks.refill(1, 0, taken) == []
    assert tasks.refill(1, 99, set(range(20))) == []
    other = [prompt.row for prompt, _ in tasks.refill(2, 99, set())]
    assert sorted(other) == list(range(20)) != other
    assert other != [prompt.row for prompt, _ in tasks.refill(1, 99, set())]


def test_refills_keep_proportions_and_what_is_held_out(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", questions("a", 30))
    second = write(tmp_path / "b.jsonl", questions("b", 30))
    tasks = data(tmp_path, first, f"{second}=0.25", prompts=4, steps=2, eval_fraction=0.2)
    held = {prompt.row for prompt in tasks.held_out()}
    rows = [prompt.row for prompt, _ in tasks.refill(0, 16, set())]
    assert len(rows) == 16 and sum(row >= 30 for row in rows) == 4
    everything = {prompt.row for prompt, _ in tasks.refill(0, 99, set())}
    assert held and not everything & held and len(everything | held) == 60
    assert not held & {row for step in range(2) for row, _ in drawn(tasks, step)}


def test_the_order_follows_from_the_seed_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", questions("a", 10))
    one, same = data(tmp_path, path), data(tmp_path, path)
    assert [drawn(one, step) for step in range(3)] == [drawn(same, step) for step in range(3)]
    assert (one.fingerprint, one.consumed(2)) == (same.fingerprint, same.consumed(2))
    other = TaskData(opened(tmp_path, path), seed=1, prompts_per_step=4)
    assert other.fingerprint != one.fingerprint and other.consumed(2) != one.consumed(2)


def test_held_out_prompts_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", questions("a", 10))
    second = write(tmp_path / "b.jsonl", [*questions("b", 2), *questions("a", 3)])
    assert shared_prompts(opened(tmp_path, first, eval_data=(second,))) == 3
    assert shared_prompts(opened(tmp_path, first, second, eval_fraction=0.3)) == 0
    assert shared_prompts(opened(tmp_path, first)) == 0


def test_other_examples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a|b\n\nc|d\n")
    config = DataConfig(data=(str(tmp_path / "t.txt"),))

    class Chats(FakeRenderer):
        class form:
            consumes, wants = "chat", "pairs"

    stores = open_data(config, Chats(), cache=tmp_path / "cache", seed=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holds no tasks"):
        TaskData(stores, seed=0, prompts_per_step=1)
