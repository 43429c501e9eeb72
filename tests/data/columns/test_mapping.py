"""Mapped columns: what a reader gets of a row, what counts as read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.config.data_source import DataSource
from espalier.config.sections import DataConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.columns.mapping import Columns
from espalier.data.dataset import sources_of
from espalier.data.read import Source, read
from espalier.errors import ConfigError, DataError, RowError
from espalier.types import Chat, Consumes, Example, Ranking, Steps


def examples(
    folder: Path, rows: list[Any], *columns: str, consumes: Consumes = "chat", **settings: Any
) -> tuple[list[Example | RowError], Ledger]:
    path, ledger = folder / "rows.jsonl", Ledger()
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    mapping = Columns.parse(columns, settings.pop("ignored", ()))
    source = Source(str(path), columns=mapping, consumes=consumes, **settings)
    return list(read(source, ledger)), ledger


def said(example: Example | RowError) -> list[tuple[str, str]]:
    assert isinstance(example, Chat), example
    return [(message.role, message.content) for message in example.messages]


ROW = {"problem": "1 + 1?", "final": "It is 2.", "sys": "Be kind.", "meta": {"truth": ["2", {"x": "two"}]}}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt=problem answer=final", [("user", "1 + 1?"), ("assistant", "It is 2.")]),
        ("question=problem output=final", [("user", "1 + 1?"), ("assistant", "It is 2.")]),
        ("instruction=problem output=final", [("user", "1 + 1?"), ("assistant", "It is 2.")]),
        (
            "prompt=problem answer=final system=sys",
            [("system", "Be kind."), ("user", "1 + 1?"), ("assistant", "It is 2.")],
        ),
        ("prompt=problem answer=meta.truth[0]", [("user", "1 + 1?"), ("assistant", "2")]),
        ("prompt=problem answer=meta.truth[-1].x", [("user", "1 + 1?"), ("assistant", "two")]),
        ("prompt==Hi! answer=final", [("user", "Hi!"), ("assistant", "It is 2.")]),
        ("instruction==Solve. input=problem output=final", [("user", "Solve.\n1 + 1?"), ("assistant", "It is 2.")]),
    ],
)
def test_fields_are_read_from_columns_paths_and_constants(
    columns: str, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    (chat,), ledger = examples(tmp_path, [ROW], *columns.split(" "))
    assert said(chat) == expected
    ledger.refuse("rows.jsonl")


def test_a_mapped_field_goes_before_columns_of_its_other_names(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    row = {"prompt": "p", "query": "q", "response": "r", "text": "t", "problem": "1?", "final": "2", "messages": turns}
    for columns in ("query=problem output=final", "prompt=problem answer=final"):
        (chat,), ledger = examples(tmp_path, [row], *columns.split())
        assert said(chat) == [("user", "1?"), ("assistant", "2")]
        # Nobody said that the conversation may be left out.
        assert list(ledger.dropped) == ["messages"]
    (chat,), _ = examples(tmp_path, [row], "messages=messages")
    assert said(chat) == [("user", "Hi"), ("assistant", "Ho")]


def test_names_with_dots_blanks_and_json_in_a_text(tmp_path: Path) -> None:
    row = {"a.b": "1?", "the answer": "2", "list": '["3?", "4"]'}
    (chat,), _ = examples(tmp_path, [row], "prompt=a.b", "answer=the answer")
    assert said(chat) == [("user", "1?"), ("assistant", "2")]
    (chat,), _ = examples(tmp_path, [row], "prompt=list[0]", "answer=list[1]")
    assert said(chat) == [("user", "3?"), ("assistant", "4")]


def test_messages_pairs_labels_scores_and_steps_are_mapped(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    (chat,), _ = examples(tmp_path, [{"dialog": {"all": turns}}], "conversations=dialog.all")
    assert said(chat) == [("user", "Hi"), ("assistant", "Ho")]

    row = {"ask": "1?", "up": "2", "down": "3", "marks": {"up": 9, "down": 1}, "fine": True}
    pair = ("prompt=ask", "chosen=up", "rejected=down")
    (ranking,), _ = examples(tmp_path, [row], *pair, consumes="ranking")
    assert isinstance(ranking, Ranking) and [r.rank for r in ranking.responses] == [0, 1]
    scores = ("score_chosen=marks.up", "score_rejected=marks.down")
    (ranking,), _ = examples(tmp_path, [row], *pair, *scores, consumes="ranking")
    assert isinstance(ranking, Ranking) and [r.scores for r in ranking.responses] == [(9.0,), (1.0,)]
    (ranking,), _ = examples(tmp_path, [row], "prompt=ask", "answer=up", "label=fine", consumes="ranking")
    assert isinstance(ranking, Ranking) and [r.good for r in ranking.responses] == [True]
    (ranking,), _ = examples(tmp_path, [row], "prompt=ask", "answer=up", "score=marks.up", consumes="ranking")
    assert isinstance(ranking, Ranking) and [r.scores for r in ranking.responses] == [(9.0,)]
    (ranking,), _ = examples(
        tmp_path, [row], "prompt=ask", "responses=up,down", "scores=marks.up,marks.down", consumes="ranking"
    )
    assert isinstance(ranking, Ranking) and [r.scores for r in ranking.responses] == [(9.0,), (1.0,)]

    row = {"ask": "1?", "work": [{"t": "a", "ok": True}, {"t": "b", "ok": False}]}
    columns = ("prompt=ask", "steps=work[].t", "labels=work[].ok")
    (steps,), ledger = examples(tmp_path, [row], *columns, consumes="steps")
    assert isinstance(steps, Steps) and (steps.steps, steps.labels) == (("a", "b"), (1.0, 0.0))
    assert ledger.read["work.t"] == ("steps", 1) and not ledger.unread


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("prompt=problm", r"rows.jsonl:1: columns prompt=problm: the row has no problm; .* Did you mean problem\?"),
        ("prompt=meta.trut[0]", r"has no trut of meta.trut\[0\]; expected one of truth. Did you mean truth\?"),
        ("prompt=meta.truth[7]", r"has no \[7\] of meta.truth\[7\]; expected one of 2 items"),
    ],
)
def test_a_column_that_no_row_has_is_refused_with_the_nearest_one(column: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        examples(tmp_path, [ROW, ROW], column, "answer=final")


def test_a_column_that_some_rows_lack_is_theirs_to_lack(tmp_path: Path) -> None:
    rows = [{"q": "1?", "a": "2"}, {"q": "3?", "a": "4", "sys": "Be kind."}, {"a": "5"}]
    (first, second, third), _ = examples(tmp_path, rows, "prompt=q", "answer=a", "system=sys")
    assert len(said(first)) == 2 and len(said(second)) == 3
    assert isinstance(third, RowError) and "rows.jsonl:3" in str(third) and "Columns are mapped: prompt=q" in str(third)


def test_a_mapped_field_that_no_reader_reads_is_refused(tmp_path: Path) -> None:
    _, ledger = examples(tmp_path, [ROW], "prompt=problem", "answer=final", "sytem=sys")
    with pytest.raises(DataError, match="columns sytem is given, but format prompt reads it in none of 1 rows"):
        ledger.refuse("rows.jsonl")


def test_ignored_columns_are_not_read(tmp_path: Path) -> None:
    row = {"prompt": "1?", "response": "2", "system": "Be rude.", "text": "t"}
    (chat,), ledger = examples(tmp_path, [row], ignored=("system",))
    assert said(chat) == [("user", "1?"), ("assistant", "2")] and "system" in ledger.unread
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "thinking": "Hm."}]
    (chat,), _ = examples(tmp_path, [{"messages": turns}], ignored=("messages.thinking",))
    assert isinstance(chat, Chat) and chat.messages[1].reasoning is None


def test_a_source_goes_before_all_data_and_all_of_it_keys_the_cache() -> None:
    own = DataSource("b.jsonl", columns=("prompt=q",), ignore_columns=("x",), share=2)
    config = DataConfig(
        data=("a.jsonl", own), columns=("prompt=p", "answer=a"), ignore_columns=("y",), replay=("r.txt",)
    )
    plain, other = sources_of(config, "chat").main
    assert plain.columns == Columns.parse(("prompt=p", "answer=a"), ("y",))
    assert other.columns == Columns.parse(("prompt=q", "answer=a"), ("y", "x")) and other.proportion == 2
    assert not sources_of(config, "chat").replay[0].columns
    bare = sources_of(DataConfig(data=("a.jsonl",)), "chat").main[0]
    assert len({bare.options, plain.options, other.options}) == 3
    ignoring = sources_of(DataConfig(data=("a.jsonl",), ignore_columns=("x",)), "chat").main[0]
    assert ignoring.options not in (bare.options, plain.options)


@pytest.mark.parametrize(
    ("columns", "value", "ranks"),
    [
        ("best=which", 1, [1, 0]),
        ("best=which", 0.0, [0, 1]),
        ("best=which", "1", [1, 0]),
        ("best=which", "model_b", [1, 0]),
        ("best=which", "A", [0, 1]),
        ("preference=which", -3, [0, 1]),
        ("preference=which", 0.5, [1, 0]),
        ("preference=which", 0, [0, 0]),
    ],
)
def test_which_of_several_answers_is_best(columns: str, value: Any, ranks: list[int], tmp_path: Path) -> None:
    row = {"prompt": "Q", "one": "a", "two": "b", "which": value}
    (ranking,), ledger = examples(tmp_path, [row], "responses=one,two", columns, consumes="ranking")
    assert isinstance(ranking, Ranking) and [r.rank for r in ranking.responses] == ranks
    ledger.refuse("rows.jsonl")


@pytest.mark.parametrize(
    ("columns", "value"),
    [("best=which", 2), ("best=which", "tie"), ("best=which", True), ("best=which", None), ("preference=which", "a")],
)
def test_a_place_that_no_answer_has_refuses_the_row(columns: str, value: Any, tmp_path: Path) -> None:
    row = {"prompt": "Q", "one": "a", "two": "b", "which": value}
    (error,), _ = examples(tmp_path, [row], "responses=one,two", columns, consumes="ranking")
    assert isinstance(error, RowError) and error.reason == "unknown preference" and error.where.endswith(":1")


def test_a_mapped_label_of_0_or_1_is_false_or_true(tmp_path: Path) -> None:
    rows = [{"q": "Q", "a": "one", "fine": 1}, {"q": "Q", "a": "two", "fine": 0}]
    found, _ = examples(tmp_path, rows, "prompt=q", "answer=a", "label=fine", consumes="ranking")
    assert [r.responses[0].good for r in found if isinstance(r, Ranking)] == [True, False]
    steps = {"q": "Q", "s": ["one", "two"], "first_bad": 1}
    (example,), _ = examples(tmp_path, [steps], "prompt=q", "steps=s", "label=first_bad", consumes="steps")
    assert isinstance(example, Steps) and example.labels == (1.0, 0.0)


def test_a_preference_without_a_list_of_answers_is_the_formats_to_read(tmp_path: Path) -> None:
    row = {"prompt": "Q", "response_1": "a", "response_2": "b", "strength": -2}
    (ranking,), ledger = examples(tmp_path, [row], "preference_strength=strength", consumes="ranking")
    assert isinstance(ranking, Ranking) and [r.rank for r in ranking.responses] == [0, 1]
    ledger.refuse("rows.jsonl")


def test_a_source_of_its_own_settings_takes_the_place_of_other_names_too() -> None:
    flags, own = Columns.parse(("prompt=q", "response=a", "system=s")), Columns.parse(("answer=solutions[0]",))
    assert [field.name for field in flags.updated(own).fields] == ["prompt", "system", "answer"]
