"""The mapping that an error about a row proposes: one that was tried on that row."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from espalier.data.columns.mapping import Columns
from espalier.data.columns.propose import propose
from espalier.data.formats import FORMATS, convert, sniff
from espalier.data.formats.expand import expand
from espalier.errors import ConfigError, RowError
from espalier.types import Consumes, Origin


def proposal(row: Any, consumes: Consumes) -> str:
    """`--columns ...` with which a row can be read as what a run consumes; empty if no mapping is found.

    >>> proposal({"id": 7, "problem_text": "1 + 1?", "final_solution": "It is 2."}, "chat")
    '--columns prompt=problem_text response=final_solution'
    """
    if not isinstance(row, Mapping):
        return ""
    fields = propose(row, consumes)
    if not fields or not _reads(Columns.parse(fields), row, consumes):
        return ""
    return " ".join(("--columns", *map(shlex.quote, fields)))


def _reads(columns: Columns, row: Mapping[str, Any], consumes: Consumes) -> bool:
    """Whether a mapped row gives an example of the form that a run consumes."""
    mapped = dict(columns.apply(row).row)
    name = sniff(mapped, consumes)
    if name not in FORMATS:
        return False
    try:
        examples = convert(name, mapped, Origin())
    except (RowError, ConfigError):
        return False
    return all(not isinstance(item, RowError) for example in examples for item in expand(example, consumes))
