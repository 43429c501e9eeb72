"""Rows that cannot be used: the first one stops the build, or all are listed with their reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.data.store.report import write_rejected
from espalier.data.store.store import open_store
from espalier.errors import DataError, RowError
from stores import FakeRenderer, FakeSource, Rows, build, entries


def test_stop_raises_the_first_bad_row_and_caches_nothing(tmp_path: Path) -> None:
    with pytest.raises(RowError) as e:
        build(tmp_path, ["a|b", "bad 1", "bad 2"])
    assert str(e.value) == "in/toy.jsonl:2: bad text; got bad 1; expected better text"
    assert entries(tmp_path) == []


def test_stop_does_not_accept_what_skip_cached(tmp_path: Path) -> None:
    texts: list[str | RowError] = ["a|b", "bad 1", "bad 2"]
    build(tmp_path, texts, on_bad_row="skip")
    with pytest.raises(RowError) as e:
        build(tmp_path, texts)
    assert str(e.value) == "in/toy.jsonl:2: bad text; got bad 1; expected better text"
    assert len(build(tmp_path, texts, on_bad_row="skip")) == 1


def test_rejected_rows_are_written_with_their_reason(tmp_path: Path) -> None:
    one = build(tmp_path, ["a|b", "bad é \ud800"], on_bad_row="skip")
    # The same bytes under another name: what the cache says of their rows is said of the new name.
    moved = FakeSource(path="elsewhere.jsonl", name="other")
    reader = Rows([])
    two = open_store(moved, reader, FakeRenderer(), cache=tmp_path, content_key="v1", on_bad_row="skip")
    assert reader.reads == 0
    assert write_rejected([one, two], tmp_path / "rejected.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["source"], r["row"], r["where"], r["reason"]) for r in lines] == [
        ("toy", 2, "in/toy.jsonl:2", "bad text"),
        ("other", 2, "elsewhere.jsonl:2", "bad text"),
    ]
    assert lines[1]["message"] == "elsewhere.jsonl:2: bad text; got bad é \ud800; expected better text"


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row can be used: bad text \(2\)"):
        build(tmp_path, ["bad 1", "bad 2"], on_bad_row="skip")
    with pytest.raises(DataError, match="it has no rows"):
        build(tmp_path, [], content_key="v2")
