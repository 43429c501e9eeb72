"""Rows whose answers are only scored: judgements are not asked for, and broken ones are in nobody's way."""

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.columns.ledger import Ledger
from espalier.data.read import Source, read
from espalier.errors import RowError
from espalier.types import Ranking, Steps

LISTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"prompt": "q", "responses": ["x", "", "x"]}, ["x", "", "x"]),
    ({"prompt": "q", "completions": ["x", "y"]}, ["x", "y"]),
    ({"prompt": "q", "answers": [{"text": "x"}, {"text": "y"}]}, ["x", "y"]),
    ({"prompt": "q", "responses": ["x", "y"], "ranks": [5, 9]}, ["x", "y"]),
    ({"messages": [{"role": "user", "content": "q"}], "responses": ["x", "y"]}, ["x", "y"]),
    ({"prompt": "q", "response": "x"}, ["x"]),
    ({"prompt": "q", "response": "x", "score": "of no kind"}, ["x"]),
    ({"prompt": "q", "completion": [{"role": "assistant", "content": "x"}]}, ["x"]),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]}, ["x"]),
    ({"prompt": "q", "chosen": "x", "rejected": "y"}, ["x", "y"]),
    ({"prompt": "q", "chosen": "x", "rejected": "x"}, ["x", "x"]),
    ({"prompt": "q", "chosen": "x", "rejected": ""}, ["x", ""]),
    ({"prompt": "q", "steps": ["x", "y"]}, ["x\ny"]),
]
SOLUTIONS: list[tuple[dict[str, Any], list[tuple[str, ...]]]] = [
    ({"prompt": "q", "steps": ["x", "y"]}, [("x", "y")]),
    ({"prompt": "q", "steps": ["x", "y"], "labels": ["?", "?"]}, [("x", "y")]),
    ({"prompt": "q", "steps": [{"text": "x", "label": "?"}]}, [("x",)]),
    ({"prompt": "q", "completions": ["x", "y"], "labels": [True, False]}, [("x", "y")]),
    ({"prompt": "q", "steps": ["x", "y"], "mistake_index": 0}, [("x", "y")]),
    ({"problem": "q", "solution": "x\ny"}, [("x", "y")]),
    ({"problem": "q", "solutions": ["x\ny", "z"]}, [("x", "y"), ("z",)]),
    ({"prompt": "q", "responses": ["x\n\ny", "z"]}, [("x", "y"), ("z",)]),
    ({"prompt": "q", "chosen": "x\ny", "rejected": "z"}, [("x", "y"), ("z",)]),
]


def one_by_one(tmp_path: Path, row: dict[str, Any], consumes: Any) -> list[Any]:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return list(read(Source(str(file), consumes=consumes, judged=False)))


@pytest.mark.parametrize(("row", "texts"), LISTS)
def test_answers_without_judgements(tmp_path: Path, row: dict[str, Any], texts: list[str]) -> None:
    (example,) = one_by_one(tmp_path, row, "ranking")
    assert isinstance(example, Ranking)
    assert [m.content for m in example.prompt] == ["q"] and [r.message.content for r in example.responses] == texts


@pytest.mark.parametrize(("row", "solutions"), SOLUTIONS)
def test_steps_without_labels(tmp_path: Path, row: dict[str, Any], solutions: list[tuple[str, ...]]) -> None:
    examples = one_by_one(tmp_path, row, "steps")
    assert all(isinstance(example, Steps) for example in examples)
    assert [example.steps for example in examples] == solutions
    # No label, so that none stops the steps behind it.
    assert all(set(example.labels) == {1.0} and example.soft for example in examples)


def test_rows_of_one_file_may_be_of_several_kinds_and_what_is_not_read_is_known(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [row for row, _ in LISTS] + [{"prompt": "q", "answer": "x", "colour": "red"}, {"prompt": "only"}, {"id": 7}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger = Ledger()
    examples = list(read(Source(str(file), consumes="ranking", judged=False), ledger))
    assert [isinstance(example, Ranking) for example in examples] == [True] * (len(rows) - 2) + [False] * 2
    assert all(isinstance(e, RowError) and e.reason == "no answer" for e in examples[-2:])
    assert ledger.unread["colour"].rows == 1 and "prompt" in ledger.read and "responses" in ledger.read


def test_an_example_keeps_the_names_that_its_row_gives_to_the_template(tmp_path: Path) -> None:
    row = {"prompt": "q", "response": "x", "chat_template_kwargs": {"enable_thinking": False}}
    for consumes in ("ranking", "steps"):
        (example,) = one_by_one(tmp_path, row, consumes)
        assert example.template_args == {"enable_thinking": False}
    (example,) = one_by_one(tmp_path, {**row, "response": ["x", "y"]}, "ranking")
    assert example.template_args == {"enable_thinking": False}


def test_training_still_asks_for_judgements(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(LISTS[0][0]) + "\n")
    assert all(isinstance(example, RowError) for example in read(Source(str(file), consumes="ranking")))
