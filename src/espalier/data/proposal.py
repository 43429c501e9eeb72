"""The mapping that an error about a row proposes: one that was tried on that row."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from espalier.data.columns.ledger import Ledger
from espalier.data.columns.mapping import Columns
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
    for fields in mappings(row, consumes):
        if _reads(Columns.parse(fields), row, consumes):
            return " ".join(("--columns", *map(shlex.quote, fields)))
    return ""


def _reads(columns: Columns, row: Mapping[str, Any], consumes: Consumes) -> bool:
    """Whether a mapped row gives an example of the form that a run consumes, and nothing of weight is left out."""
    try:
        name = sniff(dict(columns.apply(row).row), consumes)
        if name not in FORMATS:
            return False
        prepared = columns.apply(watched(row))
        examples = convert(name, prepared.row, Origin())
    except RowError:
        return False
    if any(isinstance(item, RowError) for example in examples for item in expand(example, consumes)):
        return False
    unread = {field.name for field in columns.fields} - set(prepared.settle())
    ledger = Ledger(name)
    ledger.add(1, prepared.raw)
    return not unread and not ledger.dropped
