"""What was read and what was not lies in the store: a cached source says and refuses the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from espalier.data.columns.ledger import Ledger
from espalier.data.read import Source, read
from espalier.data.store.store import Store, open_store
from espalier.errors import DataError, RowError
from espalier.types import Example, Text
from stores import FakeRenderer

LONG = "A remark of more than eighty characters, which stands beside a text that somebody wants to train on."


def store_of(folder: Path, rows: list[dict[str, object]]) -> Store:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source, ledger = Source(str(path), consumes="chat"), Ledger()

    def texts() -> Iterator[Example | RowError]:
        for example in read(source, ledger):
            yield Text("a|b", example.origin) if not isinstance(example, RowError) else example

    return open_store(
        source,
        texts,
        FakeRenderer(),
        cache=folder / "cache",
        content_key=path.read_text(encoding="utf-8"),
        ledger=ledger,
    )


def test_a_cached_source_says_what_was_read_of_it(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"query": "Q", "answer": "a", "topic": "fruit"}] * 3
    built, cached = store_of(tmp_path, rows), store_of(tmp_path, rows)
    expected = [
        "read as prompt, guessed from the first rows: query as prompt, answer as completion",
        "not read: topic (3 of 3 rows, about 5 characters)",
    ]
    assert list(built.columns.lines()) == expected and list(cached.columns.lines()) == expected


@pytest.mark.parametrize("more", [{"images": ["a.png"]}, {"remark": LONG}])
def test_a_source_is_refused_when_it_is_built_and_when_it_is_cached(more: dict[str, object], tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "response": "a", **more}] * 3
    for _ in range(2):
        with pytest.raises(DataError, match=f"rows.jsonl: read as prompt, this leaves out {next(iter(more))} "):
            store_of(tmp_path, rows)


def test_rows_that_were_all_skipped_are_said_if_nothing_is_left(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"query": "Q", "answer": "a", "correct": False}] * 3
    with pytest.raises(DataError, match=r"no row can be used: answers skipped .* --keep-wrong trains them \(3\)"):
        store_of(tmp_path, rows)
