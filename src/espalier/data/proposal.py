"""The mapping that an error about a row proposes: one that was tried on that row."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.data.columns.ledger import Ledger
from espalier.data.columns.mapping import Columns
from espalier.data.columns.names import same_field
from espalier.data.columns.propose import mappings
from espalier.data.columns.watched import watched
from espalier.data.formats import FORMATS, convert, sniff
from espalier.data.formats.expand import expand
from espalier.errors import RowError
from espalier.types import Consumes, Origin


def proposal(row: Any, consumes: Consumes) -> str:
    """`--columns ...` with which a row can be read as what a run consumes; empty if no mapping is found.

    >>> proposal({"id": 7, "problem_text": "1 + 1?", "final_solution": "It is 2."}, "chat")
    '--columns prompt=problem_text response=final_solution'
    """
    if not isinstance(row, Mapping):
        return ""
    given = list(mappings(row, consumes))
    tried = [(fields, _left_out(Columns.parse(fields), row, consumes)) for fields in given]
    for fields, left_out in tried:
        if left_out == []:
            return _flags("--columns", fields)
    for fields, left_out in tried:
        if left_out and all(reason.startswith("text") for _, reason in left_out):
            return f"{_flags('--columns', fields)} {_flags('--ignore-columns', [name for name, _ in left_out])}"
    return ""


def _flags(flag: str, values: Sequence[str]) -> str:
    return " ".join((flag, *map(shlex.quote, values)))


def _left_out(columns: Columns, row: Mapping[str, Any], consumes: Consumes) -> list[tuple[str, str]] | None:
    """What of weight a mapped row leaves out, with what it is; None if it gives no example of the form that a run
    consumes, or only maps fields to what they are called anyway."""
    called = [(field.name, *same_field((field.name,))) for field in columns.fields]
    same = all(field.path in names for field, names in zip(columns.fields, called, strict=True))
    if same and sniff(row, consumes):
        return None
    try:
        name = sniff(dict(columns.apply(row).row), consumes)
        if name not in FORMATS:
            return None
        prepared = columns.apply(watched(row))
        examples = convert(name, prepared.row, Origin())
    except RowError:
        return None
    if any(isinstance(item, RowError) for example in examples for item in expand(example, consumes)):
        return None
    unread = {field.name for field in columns.fields} - set(prepared.settle())
    ledger = Ledger(name, kept=consumes == "task")
    ledger.add(1, prepared.raw)
    return None if unread else list(ledger.dropped.items())
