"""Formats: what the fields of a row mean. Each turns one row into examples or raises RowError."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from espalier.data.formats import alpaca, messages, prompt, sharegpt, steps, text
from espalier.data.formats.common import Fields, first_key, missing, wrong_type
from espalier.errors import RowError
from espalier.types import Example, Origin

FORMATS: dict[str, Callable[[Fields, Origin], Example | Sequence[Example]]] = {
    "alpaca": alpaca.read_alpaca,
    "sharegpt": sharegpt.read_sharegpt,
    "messages": messages.read_messages,
    "prompt": prompt.read_prompt,
    "completion": prompt.read_completion,
    "steps": steps.read_steps,
    "text": text.read_text,
}
"""All formats by name. `completion` is never guessed: its rows look like those of `prompt`."""


def sniff(row: Any) -> str | None:
    """The format that a row's keys look like, or None. Of its values, only listed turns are looked at.

    >>> sniff({"question": "1 + 1?", "answer": "2"}), sniff({"id": 7})
    ('prompt', None)
    """
    if not isinstance(row, dict):
        return None
    if key := first_key(row, messages.KEYS):
        turns = row[key]
        turn = next((t for t in turns if isinstance(t, dict)), {}) if isinstance(turns, list) else {}
        if "from" in turn or "role" in turn:
            return "messages" if "role" in turn else "sharegpt"
        return "sharegpt" if key == "conversations" else "messages"
    if isinstance(row.get("steps"), list) or all(isinstance(row.get(key), list) for key in ("completions", "labels")):
        return "steps"
    if "instruction" in row and first_key(row, (*alpaca.OUTPUTS, "instances")):
        return "alpaca"
    if first_key(row, prompt.PROMPTS) and first_key(row, prompt.ANSWERS):
        return "prompt"
    return "text" if first_key(row, text.KEYS) else None


def vote(rows: Sequence[Any]) -> str | None:
    """The format that most rows look like, the earlier one of equals; None where no row looks like any."""
    votes = Counter(found for found in map(sniff, rows) if found)
    return votes.most_common(1)[0][0] if votes else None


def convert(name: str, row: Any, origin: Origin, *, alpaca_prompt: bool = False) -> Sequence[Example]:
    """The examples of one row, at least one. Raises RowError where the row is not one of format `name`."""
    if not isinstance(row, dict):
        raise wrong_type("", row, "a JSON object")
    if name == "alpaca" and alpaca_prompt:
        return alpaca.read_alpaca(row, origin, prompt=True)
    made = FORMATS[name](row, origin)
    return made if isinstance(made, list) else [made]  # type: ignore[list-item]


def unknown(row: Any) -> RowError:
    """The error for a row that looks like no format."""
    if not isinstance(row, dict):
        return wrong_type("", row, "a JSON object")
    expected = (
        "instruction and output; conversations or messages; prompt (question, query) and completion "
        "(response, answer, output); or text"
    )
    error = missing("", row, expected, "Rename the columns, or name a format with PATH:FORMAT")
    return RowError("no known format", got=error.got, expected=error.expected, fix=error.fix)
