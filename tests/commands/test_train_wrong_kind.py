"""Data of another kind than the command learns from: the error names the command that does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from desk import PAIRS, Desk
from espalier.data.formats import sniff
from espalier.data.read import Source, read
from espalier.errors import DataError, RowError
from espalier.types import Ranking
from scoring import Place

LABELS = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(6)]
CHATS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(6)]
STEPS = [{"prompt": f"q{i}", "steps": ["one", "two"], "labels": [1, 0]} for i in range(6)]
JUDGED = [{**row, "labels": [True, False]} for row in STEPS]


@pytest.mark.parametrize(
    ("rows", "commands", "named"),
    [
        (LABELS, ("dpo", "simpo", "reward"), ("espalier kto", "espalier bco")),
        (CHATS, ("dpo", "kto", "reward", "prm"), ("espalier sft",)),
        (PAIRS, ("prm",), ("espalier dpo", "espalier reward")),
        (LABELS, ("prm",), ("espalier kto", "espalier bco")),
        (STEPS, ("dpo", "kto"), ("espalier prm", "Solutions in steps")),
        (JUDGED, ("dpo",), ("espalier prm", "Solutions in steps")),
    ],
    ids=["labels", "chats", "pairs", "labels to prm", "steps in numbers", "steps"],
)
def test_the_command_that_fits_is_named(
    desk: Desk, rows: list[dict[str, Any]], commands: tuple[str, ...], named: tuple[str, ...]
) -> None:
    data = desk.rows("rows", rows)
    for command in commands:
        desk.run(f"check {command}", data=data, code=2)
        assert all(name in desk.err for name in named), (command, desk.err)


def test_labels_may_be_words(desk: Desk) -> None:
    rows = [{**row, "label": "good" if row["label"] else "Bad"} for row in LABELS]
    found = list(read(Source(desk.rows("words", rows), consumes="ranking")))
    assert [r.responses[0].good for r in found if isinstance(r, Ranking)] == [True, False] * 3
    assert sniff(rows[0]) != "labels", "of a conversation to learn from it may be any column"
    (error,) = read(Source(desk.rows("odd", [{**LABELS[0], "label": "fine"}]), "labels", consumes="ranking"))
    assert isinstance(error, RowError) and "string 'fine'; expected true or false, or good or bad" in str(error)


def test_a_reward_model_is_no_reference_and_it_is_said_before_data_is_read(desk: Desk) -> None:
    scored = Place(desk.folder).run("reward", "scored", "--data", desk.pairs, "--steps", "1") / "model"
    desk.run("check dpo", "--reference-model", scored, data=str(desk.folder / "missing.jsonl"), code=2)
    assert "reference_model" in desk.err and "is not a causal language model" in desk.err and "missing" not in desk.err


def test_a_name_that_is_nothing_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'some/rows' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as found:
        list(read(Source("some/rows")))
    expected = "some/rows: no such file or folder, nor a data set on the hub (offline: the hub cannot be reached)"
    assert str(found.value) == expected


def test_an_interrupted_run_says_once_how_to_go_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SimpleNamespace(chosen=None, stopped="SIGINT", state=SimpleNamespace(step=3))
    monkeypatch.setattr("espalier.commands.train._train", lambda *_: stopped)
    desk.run("dpo", code=130)
    assert "stopped by SIGINT, saved as step-000003" in desk.out
    assert (desk.out + desk.err).count("continue with") == 1 and "continue with" in desk.err
