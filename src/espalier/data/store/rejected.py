"""Rows that could not be used, written down: one JSON object a line, from which the error can be raised again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espalier.errors import RowError

FIELDS = ("where", "reason", "field", "got", "expected", "fix")
NAME = "rejected.jsonl"


def record(error: RowError, row: int, source: str, path: str) -> dict[str, Any]:
    """`error` as JSON: its six fields, its full `message`, and `row`, which counts the rows of `source` from 1."""
    fields = {name: getattr(error, name) for name in FIELDS}
    return {"source": source, "path": path, "row": row, **fields, "message": str(error)}


def restore(item: dict[str, Any], path: str) -> RowError:
    """The RowError that `record` wrote, its place in terms of `path`, from which the same bytes are read now."""
    # An entry is found by what a file contains: the file may have another path than when the entry
    # was written.
    where = item["where"]
    if where.startswith(f"{item['path']}:"):
        where = path + where[len(item["path"]) :]
    return RowError(item["reason"], where=where, **{name: item[name] for name in FIELDS[2:]})


def rejections(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a cache entry, in the order of its rows."""
    with open(folder / NAME, encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
