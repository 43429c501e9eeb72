"""Tasks in their general form: a prompt, and beside it whatever grades its answers."""

from __future__ import annotations

from espalier.data.formats.common import Fields
from espalier.data.formats.format import Format
from espalier.data.formats.tasks import answers_of, has_prompt, task
from espalier.types import Origin, Task


def read_task(row: Fields, origin: Origin) -> Task:
    """A Task of a prompt (`question`), with its `answer` (`answers_of`), its `verifier`, its `facts` (an object or its
    JSON) and its `tools`, all but the prompt optional. Raises RowError."""
    return task(row, origin, answers=answers_of(row))


FORMAT = Format("task", read_task, has_prompt)
