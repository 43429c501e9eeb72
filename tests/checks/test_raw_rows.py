"""Samples against their raw rows: columns that say by name what they are, and readers that take one for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from desk import Desk
from espalier.algorithms.kto import KTO
from espalier.checks.evidence import Row
from espalier.checks.raw_rows import claims, lines_of, raw_rows
from espalier.data import formats
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.types import Chat, Message, Origin, Ranking, Response, Steps, TrainOn
from tiny import TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WHY = Message("user", "Why is it?")


def verdict(
    raw: dict[str, Any],
    example: Any,
    form: Form,
    label: float | None = None,
    tokenizer: Any = TOKENIZER,
    train_on: TrainOn = "assistant",
) -> str:
    renderer = Renderer(tokenizer, form=form, train_on=train_on)
    rendered = renderer.render(example)
    stored = [r.sample for r in rendered]
    if label is not None:
        stored = [replace(s, label=label) for s in stored]
    found = claims(raw, Row(example, rendered, stored), tokenizer.decode, judged=True, train_on=train_on)
    return raw_rows(found).verdict


def chat(question: str, answer: str) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)), origin=Origin("d", 1))


def pair(better: str, worse: str) -> Ranking:
    responses = (Response(Message("assistant", better), rank=0), Response(Message("assistant", worse), rank=1))
    return Ranking((WHY,), responses, origin=Origin("d", 1))


def solution(*labels: float | None) -> Steps:
    steps = ("one two", "then three", "done")
    return Steps((WHY,), steps, labels, False, origin=Origin("d", 1))


def test_an_input_that_is_lost_is_seen() -> None:
    raw = {"instruction": "Add up", "input": "b and c", "output": "d e"}
    assert verdict(raw, chat("Add up b and c", "d e"), Form()) == "pass"
    assert verdict(raw, chat("Add up", "d e"), Form()) == "fail"
    assert verdict(raw, chat("Add up b and c", "f"), Form()) == "fail"


def test_a_prompt_that_is_trained_too_is_looked_for_there() -> None:
    raw = {"instruction": "Add up", "input": "b and c", "output": "d e"}
    assert verdict(raw, chat("Add up b and c", "d e"), Form(), train_on="all") == "pass"
    assert verdict(raw, chat("Add up", "d e"), Form(), train_on="all") == "fail"


def test_reasoning_that_the_prompt_opens_is_no_part_of_what_is_trained() -> None:
    thinks = tiny_tokenizer(template=TEMPLATE.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>'"))
    raw = {"instruction": "Add up", "input": "b and c", "output": "<think>one two</think>three"}
    right, wrong = (chat("Add up b and c", f"<think>{text}</think>three") for text in ("one two", "one"))
    assert verdict(raw, right, Form(), tokenizer=thinks) == "pass"
    assert verdict(raw, wrong, Form(), tokenizer=thinks) == "fail"


@pytest.mark.parametrize(
    "wrap", [str, lambda text: f"Human: Why?\n\nAssistant: {text}", lambda text: [{"content": text}]]
)
def test_columns_that_are_exchanged_are_seen(wrap: Any) -> None:
    raw = {"chosen": wrap("Because it is"), "rejected": wrap("No idea")}
    right, wrong = pair("Because it is", "No idea"), pair("No idea", "Because it is")
    assert verdict(raw, right, Form("ranking")) == "pass" and verdict(raw, wrong, Form("ranking")) == "fail"
    assert verdict(raw, chat("Why?", "Because it is"), Form()) == "pass"
    assert verdict(raw, chat("Why?", "No idea"), Form()) == "fail"
    scored = {**raw, "score_chosen": 1.0, "score_rejected": 5.0}  # scores state the order of such a row
    assert verdict(scored, wrong, Form("ranking")) == "skipped"


def test_a_label_is_that_of_its_row() -> None:
    example = Ranking((WHY,), (Response(Message("assistant", "So"), good=True),), origin=Origin("d", 1))
    form = Form("ranking", KTO().traits.wants)
    raw = {"prompt": "Why?", "completion": "So", "label": True}
    assert verdict(raw, example, form) == "pass" and verdict(raw, example, form, label=0.0) == "fail"


@pytest.mark.parametrize(
    ("raw", "right", "wrong"),
    [
        ({"steps": ["a", "b", "c"], "mistake_index": 1}, (1.0, 0.0, None), (1.0, 1.0, 0.0)),
        ({"steps": ["a", "b", "c"], "mistake_index": None}, (1.0, 1.0, 1.0), (1.0, 1.0, 0.0)),
        ({"completions": ["a", "b", "c"], "labels": [True, False, False]}, (1.0, 0.0, 0.0), (0.0, 1.0, 1.0)),
    ],
)
def test_the_first_mistake_is_where_the_row_has_it(raw: Any, right: Any, wrong: Any) -> None:
    form = Form("steps", reads=True)
    assert verdict(raw, solution(*right), form) == "pass" and verdict(raw, solution(*wrong), form) == "fail"


def test_lines_without_an_object_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnot json\n[1]\n\n{"b": 2}\n')
    assert lines_of(path) == {1: {"a": 1}, 5: {"b": 2}}
    assert raw_rows([]).verdict == "skipped"


def test_a_reader_that_exchanges_columns_stops_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run("check dpo", name="right")
    read: Any = formats.FORMATS["pairs"]

    def exchanged(row: Any, origin: Any) -> Any:
        return read({**row, "chosen": row["rejected"], "rejected": row["chosen"]}, origin)

    monkeypatch.setitem(formats.FORMATS, "pairs", exchanged)
    desk.run("check dpo", "--cache", str(desk.folder / "other"), code=2)
    assert "raw_rows:" in desk.err + desk.out
