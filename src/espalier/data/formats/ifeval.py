"""IFEval: prompts with instructions that a program can check. Zhou et al., arXiv:2311.07911."""

from __future__ import annotations

from typing import Any

from espalier.data.columns.contents import decoded
from espalier.data.columns.watched import peek
from espalier.data.formats.common import Fields, first_key, missing, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.tasks import has_prompt, json_value, task
from espalier.errors import RowError
from espalier.types import Consumes, Origin, Task

IDS, KWARGS = "instruction_id_list", "kwargs"
VERIFIER = "ifeval"


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a run answers tasks, and a row has a prompt and the list of its instructions."""
    return has_prompt(row, consumes) and first_key(row, (IDS,)) is not None


def read_ifeval(row: Fields, origin: Origin) -> Task:
    """A Task that names the verifier `ifeval`, with the instructions (`instruction_id_list`) and their arguments
    (`kwargs`, one object each, nulls left out) as facts. Raises RowError if their numbers differ."""
    if first_key(row, (IDS,)) is None:
        raise missing(IDS, row, IDS)
    ids, kwargs = decoded(row[IDS]), decoded(row.get(KWARGS))
    if not isinstance(ids, list) or not ids or not all(isinstance(name, str) for name in ids):
        raise wrong_type(IDS, ids, "a list of names of instructions")
    given: list[Any] = [{} for _ in ids] if kwargs is None else kwargs
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise wrong_type(KWARGS, peek(row, KWARGS), "a list of objects")
    if len(given) != len(ids):
        raise RowError(
            "arguments do not fit the instructions",
            field=KWARGS,
            got=f"{len(given)} for {len(ids)} instructions",
            expected="one object for each",
        )
    # A table gives every object the keys of all of them.
    arguments = [{key: value for key, value in dict.items(entry) if value is not None} for entry in given]
    return task(row, origin, verifier=VERIFIER, facts={IDS: list(ids), KWARGS: json_value(arguments)})


FORMAT = Format("ifeval", read_ifeval, looks)
