"""Rows that could not be used, written down: one JSON object a line, from which the error can be raised again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.errors import RowError

if TYPE_CHECKING:
    from espalier.data.store.store import Store

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


def write_rejected(stores: Iterable[Store], path: Path) -> int:
    """Write the rejected rows of all `stores` to `path` as JSON lines and return how many there are.

    Each line holds `source`, `path`, `row`, `where`, `reason`, `field`, `got`, `expected`, `fix` and `message`. The
    file is replaced as a whole; without rejected rows it is empty.
    """
    count = 0
    # Processes of one run may write the same report; each has its own draft, and the last whole one
    # stays.
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with open(draft, "w", encoding="utf-8", errors="backslashreplace") as out:
        for store in stores:
            for item in rejections(store.folder):
                item = record(restore(item, store.path), item["row"], store.source, store.path)
                out.write(json.dumps(item, ensure_ascii=False) + "\n")
                count += 1
    os.replace(draft, path)
    return count
