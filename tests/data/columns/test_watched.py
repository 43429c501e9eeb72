"""Rows remember what was looked up, and nothing else."""

from __future__ import annotations

import json

from espalier.data.columns.watched import WatchedRow, plain, watched
from espalier.data.formats.common import first_key, first_list, string, tools


def test_a_key_counts_once_its_value_is_looked_up() -> None:
    row = watched({"a": 1, "b": None, "c": {"d": 2, "e": 3}, "f": [{"g": 4}]})
    assert "a" in row and len(row) == 4 and list(row) == ["a", "b", "c", "f"] and not row.taken
    assert row["a"] == 1 and row.get("b") is None and row.get("x", 5) == 5 and row["c"]["d"] == 2
    assert row.taken == {"a": "a", "c": "c"} and dict.get(row, "c").taken == {"d": "d"}
    assert row["f"][0].taken == {}


def test_a_field_has_the_first_of_its_names_and_the_others_are_rivals() -> None:
    row = WatchedRow(query="q", question=None, answers=["a"], responses="r")
    assert first_key(row, ("prompt", "question", "query")) == "query" and not row.taken
    assert string(row, ("prompt", "question", "query")) == "q"
    assert first_list(row, ("responses", "answers")) == "answers" and "answers" not in row.taken
    assert row["answers"] == ["a"]
    assert row.taken == {"query": "prompt", "answers": "responses"}
    assert row.rivals == {"prompt", "question", "query", "responses", "answers"}


def test_what_is_kept_whole_is_read_whole() -> None:
    row = watched({"tools": [{"name": "add", "parameters": {"type": "object", "properties": {}}}], "x": {"y": [1]}})
    (tool,) = tools(row)
    assert not isinstance(tool, WatchedRow) and type(tool["function"]["parameters"]) is dict
    assert row.taken == {"tools": "tools"} and not dict.get(row, "tools")[0].taken
    assert json.dumps(dict.get(row, "x")) == '{"y": [1]}' and dict.get(row, "x").taken == {"y": "y"}
    assert type(plain(row)) is dict and plain(row) == row
