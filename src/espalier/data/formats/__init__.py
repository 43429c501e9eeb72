"""Formats: what the fields of a row mean. Each turns rows into examples or raises RowError.

Most read one row at a time (`FORMATS`); some need all rows of a file (`FILES`) or all files of a folder (`FOLDERS`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from espalier.data.columns.ledger import Ledger
from espalier.data.files.json_rows import Row
from espalier.data.formats import (
    alpaca,
    chats,
    choice,
    compared,
    completion,
    gsm8k,
    hh,
    ifeval,
    judge,
    labels,
    math,
    nodes,
    pairs,
    prm800k,
    ranked,
    reviews,
    scores,
    steps,
    task,
    tasks,
    tree,
)
from espalier.data.formats.common import Fields, first_key, missing, template_args, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.messages import is_turns
from espalier.data.formats.nulls import LEFT_OUT, without_forced_nulls
from espalier.data.formats.scale import Notes, Scale, add
from espalier.errors import RowError
from espalier.types import Consumes, Example, Origin

ALL: tuple[Format, ...] = (
    # In the order in which a row is compared with them. Prompts that a policy answers itself, if a run consumes tasks.
    ifeval.FORMAT,
    choice.FORMAT,
    gsm8k.FORMAT,
    math.FORMAT,
    task.FORMAT,
    # Judgements come before the conversations that they are about.
    hh.FORMAT,
    pairs.FORMAT,
    compared.FORMAT,
    judge.FORMAT,
    tree.FORMAT,
    nodes.FORMAT,
    prm800k.FORMAT,
    steps.FORMAT,
    ranked.FORMAT,
    labels.FORMAT,
    scores.FORMAT,
    *chats.CHATS,
    # Never guessed from a row.
    completion.FORMAT,
    reviews.FORMAT,
)
"""Every format, in the order in which a row is compared with them."""

LONGEST = 16 << 20
"""Characters of an example's texts: tokenising takes some 200 bytes of memory for each."""
ReadRow = Callable[[Fields, Origin], Example | Sequence[Example]]
ReadFile = Callable[[Iterable[Row | RowError], str, str], Iterator[Example | RowError]]
ReadFolder = Callable[[str, str, Ledger | None], Iterator[Example | RowError]]

FORMATS: dict[str, ReadRow] = {form.name: form.read for form in ALL if form.unit == "row"}
"""Readers of one row, by the format's name: `(row, origin)` to an example or a list of examples."""
FILES: dict[str, ReadFile] = {form.name: form.read for form in ALL if form.unit == "file"}
"""Readers of all rows of a file: `(rows, path, name of the source)` to examples."""
FOLDERS: dict[str, ReadFolder] = {form.name: form.read for form in ALL if form.unit == "folder"}
"""Readers of all files of a folder: `(path, name of the source, ledger of what is read)` to examples."""
KNOWN = tuple(sorted(form.name for form in ALL))
"""The names of all formats."""


def sniff(row: Any, consumes: Consumes = "chat") -> str | None:
    """The format that a row's keys look like, or None. Of its values, only types and headings are looked at.

    `consumes` is what the run learns from. It decides if a row can be read in two ways: a conversation with a score is
    a `prompt` for chats and `scores` for rankings; judged solutions are `ranked` or, for steps, `steps`; for tasks a
    prompt is enough.

    >>> sniff({"question": "1 + 1?", "answer": "2"}), sniff({"id": 7})
    ('prompt', None)
    >>> scored = {"prompt": "1 + 1?", "response": "2", "score": 9}
    >>> sniff(scored), sniff(scored, "ranking")
    ('prompt', 'scores')
    >>> sniff({"question": "1 + 1?", "answer": "It is 2.\\n#### 2"}, "task")
    'gsm8k'
    """
    if not isinstance(row, dict):
        return None
    for form in ALL:
        if form.unit != "folder" and _looks(form, row, consumes):
            return form.name
    return None


def _looks(form: Format, row: Any, consumes: Consumes) -> bool:
    try:
        return form.looks is not None and form.looks(row, consumes)
    except RowError:  # a value of its own that is broken, which its reader says in the place of the row
        return True


def sniff_folder(path: str) -> str | None:
    """The format that the files of a folder look like; None if they are rows of a data set."""
    for form in ALL:
        if form.unit == "folder" and form.looks is not None and form.looks(path):
            return form.name
    return None


def vote(rows: Sequence[Any], consumes: Consumes = "chat") -> str | None:
    """The format that most rows look like, the earlier one of equals; None if no row looks like any."""
    votes: Counter[str] = Counter()
    for row in rows:
        name = sniff(row, consumes)
        if name is not None:
            votes[name] += 1
    return votes.most_common(1)[0][0] if votes else None


def convert(
    name: str,
    row: Any,
    origin: Origin,
    *,
    alpaca_prompt: bool = False,
    scale: Scale | None = None,
    notes: Notes | None = None,
) -> Sequence[Example]:
    """The examples of one row, at least one; what was done to them is counted in `notes`. `scale` is that of the
    numbers that label steps. Raises RowError if the row is
    not one of format `name`."""
    if not isinstance(row, dict):
        raise wrong_type("", row, "a JSON object")
    if name == alpaca.FORMAT.name and alpaca_prompt:
        read: Any = alpaca.read_alpaca(row, origin, prompt=True)
    elif name == steps.FORMAT.name:
        read = steps.read_steps(row, origin, scale)
    else:
        read = FORMATS[name](row, origin)
    given = template_args(row)
    examples: list[Any] = []
    for example in read if isinstance(read, list) else [read]:
        example, count = without_forced_nulls(example)
        if count and notes is not None:
            add(notes, LEFT_OUT, count)
        _check_size(example)
        if given and hasattr(example, "template_args"):
            example = replace(cast(Any, example), template_args=given)
        examples.append(example)
    return examples


def _check_size(example: Any) -> None:
    """Raise RowError for an example whose texts are too long to be tokenised in bounded memory."""
    texts: list[str] = [getattr(example, "text", ""), *getattr(example, "steps", ())]
    messages: list[Any] = [*getattr(example, "messages", ()), *getattr(example, "prompt", ())]
    messages += [response.message for response in getattr(example, "responses", ())]
    texts += [message.content for message in messages if not isinstance(message, str)]
    size = sum(map(len, texts))
    if size > LONGEST:
        got, expected = f"{size:,} characters", f"at most {LONGEST:,}"
        raise RowError("row too long", got=got, expected=expected, fix="Split the row")


def is_conversation(value: Any) -> bool:
    """Whether a row is not an object but the list of turns of one conversation."""
    return is_turns(value) and isinstance(value, list) and first_key(value[0], ("role", "from")) is not None


def unknown(row: Any, proposal: str = "", consumes: Consumes = "chat") -> RowError:
    """The error for a row that looks like no format of what a run consumes; `proposal` is a mapping to try."""
    if not isinstance(row, dict):
        return wrong_type("", row, "a JSON object")
    expected = (
        f"{chats.EXPECTED}; text; prompt, chosen and rejected; responses with ranks or scores; steps with labels; or "
        "messages with replies or parents"
    )
    if consumes == "task":
        expected = tasks.EXPECTED
    way_out = f"Try {proposal}" if proposal else "Name its columns with --columns NAME=COLUMN"
    error = missing("", row, expected, f"{way_out}, or name a format with PATH:FORMAT")
    return RowError("no known format", got=error.got, expected=error.expected, fix=error.fix)
