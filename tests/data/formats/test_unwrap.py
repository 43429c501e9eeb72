"""Rows inside an object or without one around them, and files whose names say another container than they hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.columns.ledger import Ledger
from espalier.data.read import Source, read
from espalier.errors import DataError, RowError
from espalier.types import Chat

TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
ROW = {"prompt": "Why?", "completion": "So."}


def results(path: Path, text: str) -> tuple[list[Any], dict[str, int]]:
    path.write_text(text)
    ledger = Ledger()
    return list(read(Source(str(path)), ledger)), ledger.notes


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json"])
def test_lines_that_are_lists_are_conversations(suffix: str, tmp_path: Path) -> None:
    found, notes = results(tmp_path / f"a.{suffix}", "\n".join([json.dumps(TALK)] * 3))
    assert [type(example) for example in found] == [Chat] * 3 and [e.origin.line for e in found] == [1, 2, 3]
    assert list(notes.values()) == [3]


def test_a_line_of_a_list_among_rows_is_that_line_alone(tmp_path: Path) -> None:
    found, _ = results(tmp_path / "a.jsonl", "\n".join([json.dumps([ROW]), *[json.dumps(ROW)] * 24]))
    assert isinstance(found[0], RowError) and found[0].where.endswith(":1")
    assert [type(example) for example in found[1:]] == [Chat] * 24


def test_rows_that_an_object_holds_are_read_and_said(tmp_path: Path) -> None:
    found, notes = results(tmp_path / "a.json", json.dumps({"version": 1, "data": [ROW, {"messages": TALK}]}))
    assert isinstance(found[0], Chat) and found[0].messages[1].content == "So."
    assert notes == {"rows read from the list 'data' that the file holds": 2}


@pytest.mark.parametrize("rows", [[ROW] * 2, [{"messages": TALK}] * 2])
@pytest.mark.parametrize("wrapped", [True, False])
def test_indented_json_is_read_whatever_its_name(rows: list[Any], wrapped: bool, tmp_path: Path) -> None:
    text = json.dumps(rows, indent=1) if wrapped else "\n".join(json.dumps(row, indent=1) for row in rows)
    found, notes = results(tmp_path / "a.jsonl", text)
    assert [type(example) for example in found] == [Chat] * 2
    assert len(notes) == 1 and "indented JSON" in next(iter(notes))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(DataError, match="got 2 columns called 'text'; expected one of each name"):
        list(read(Source(str(path))))


def test_an_error_of_a_guessed_format_says_that_it_was_guessed(tmp_path: Path) -> None:
    found, _ = results(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [{"messages": TALK}] * 2 + [ROW])))
    assert "read as messages, guessed from the first 16 rows; PATH:FORMAT" in str(found[2])
