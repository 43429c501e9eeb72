"""Rows that are wrapped: in an object that holds the list of them, or a conversation without an object around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from espalier.data.files.json_rows import Row
from espalier.data.formats import is_conversation, sniff
from espalier.data.formats.common import has_any
from espalier.data.formats.scale import Notes, add
from espalier.errors import DataError, RowError

LISTS = ("data", "rows", "examples", "instances", "train", "samples", "records")


def unwrapped(rows: Iterator[Row | RowError], notes: Notes) -> Iterator[Row | RowError]:
    """The rows, with each list of turns as {"messages": turns}, and the rows that an object holds under `data` (or
    another of LISTS) in its place, numbered from 1. Both are counted in `notes`."""
    for row in rows:
        if not isinstance(row, Row):
            yield row
            continue
        if isinstance(row.value, list):
            if is_conversation(row.value):
                add(notes, "rows that are lists of turns, read as conversations", 1)
                row = Row(row.line, {"messages": row.value})
            yield row
            continue
        key = _list_key(row.value)
        if key is None:
            yield row
            continue
        inner = row.value[key]
        add(notes, f"rows read from the list {key!r} that the file holds", len(inner))
        for i, value in enumerate(inner, 1):
            yield Row(i, {"messages": value} if is_conversation(value) else value)


def _list_key(value: Any) -> str | None:
    """Under which key an object that is no row itself holds a list of rows; None if it holds none."""
    if not isinstance(value, dict) or not has_any(value, LISTS):
        return None
    for key in LISTS:
        inner = value.get(key)
        if not isinstance(inner, list) or not inner or not isinstance(inner[0], dict | list):
            continue
        # What stands beside the list describes it.
        beside = any(isinstance(other, list) for name, other in value.items() if name != key)
        if not beside and sniff(value) is None and all(_is_known(row) for row in inner[:3]):
            return key
    return None


def _is_known(row: Any) -> bool:
    return is_conversation(row) or any(sniff(row, consumes) for consumes in ("chat", "ranking", "steps"))


def at_least_one(rows: Iterator[Row | RowError], path: str) -> Iterator[Row | RowError]:
    """The rows. Raises DataError at their end if there were none."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{path}: it holds no rows; expected at least one")


def drained(items: list[Row | RowError]) -> Iterator[Row | RowError]:
    """The items in order, each forgotten as it is handed out."""
    while items:
        yield items.pop(0)
