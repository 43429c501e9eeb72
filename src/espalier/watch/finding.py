"""A finding of a watch, and its words."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.watch.history import History


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that goes wrong, or may. `size` is how many times the limit it is; it is reported again when that has
    doubled. `text` is one line: what was seen, what it means, what to do."""

    kind: str
    step: int
    size: float
    numbers: dict[str, float]
    text: str


def finding(
    history: History, kind: str, numbers: dict[str, float], *, size: float = 1.0, seen: str, meaning: str, advice: str
) -> Finding:
    """The finding at the last step. `seen`, `meaning` and `advice` are sentences, the first one in lower case."""
    text = f"{seen}{history.held_out_text()} What it means: {meaning} What to do: {advice}"
    return Finding(kind, history.step, size, numbers, text)
