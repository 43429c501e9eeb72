"""What one reward returned for one answer, read once, in the worker process, and passed on as JSON."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OWN = ""
"""The name of a reward's own score, beside those that it names."""
RESERVED = ("invalid", "steps", "score")


@dataclass(frozen=True, slots=True)
class Result:
    """One reward's word on one answer.

    scores: its score under `OWN`, or several by name; empty if the reward does not apply to the task.
    shown: further numbers by name, which are logged and do not count.
    invalid: why the answer does not qualify. error: why there is no result.
    steps: scores of parts of the response: (end in characters, so that `response[:end]` is the text up to it, score).
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    shown: Mapping[str, float] = field(default_factory=dict)
    invalid: str = ""
    error: str = ""
    steps: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object for `from_json`; entries that are empty are left out."""
        entries = {name: getattr(self, name) for name in ("scores", "shown", "invalid", "error", "steps")}
        return {name: value for name, value in entries.items() if value}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Result:
        """What `to_json` gave. Raises TypeError or ValueError for anything else."""
        numbers = {}
        for kind in ("scores", "shown"):
            numbers[kind] = {str(name): float(score) for name, score in dict(entries.get(kind, {})).items()}
        return cls(
            **numbers,
            invalid=str(entries.get("invalid", "")),
            error=str(entries.get("error", "")),
            steps=tuple((int(end), float(score)) for end, score in entries.get("steps", ())),
        )


def read(value: Any) -> Result:
    """The result that a reward returned.

    A number (or bool) is its score; None does not apply. A mapping has `invalid` (a reason; the rest does not count),
    `steps` (pairs of end and score, in order) with or without `score`, and scores by name, of which None does not
    apply. Steps without any score count as steps alone: their mean is shown, or they would count twice.

    >>> read({"steps": [(4, 1.0), (9, 0.0)]}).shown
    {'': 0.5}

    Raises TypeError and ValueError for anything else, and for numbers that are not finite.
    """
    if value is None:
        return Result()
    if not isinstance(value, Mapping):
        return Result({OWN: number(value)})
    if not value:
        raise ValueError("returned an empty mapping; expected scores by name, or None if it does not apply")
    if value.get("invalid"):
        return Result(invalid=_reason(value["invalid"]))
    steps = _steps(value["steps"]) if value.get("steps") is not None else ()
    scores = {}
    for name, score in value.items():
        if name in ("invalid", "steps") or score is None:
            continue
        if not isinstance(name, str) or not name:
            raise TypeError(f"returned a mapping with the name {_short(name)}; expected texts as names")
        scores[OWN if name == "score" else name] = number(score, f"{name} is")
    shown = {OWN: sum(score for _, score in steps) / len(steps)} if steps and not scores else {}
    return Result(scores, shown, steps=steps)


def read_scored(value: Any) -> Result:
    """The result of a function in verl's form: a number, or a mapping whose `score` counts; its other numbers are
    shown, what is no number is left out. Raises as `read` does."""
    if not isinstance(value, Mapping):
        return read(value)
    if "score" not in value:
        raise ValueError(f"returned a mapping without score; it has {', '.join(map(str, value)) or 'nothing'}")
    shown = {}
    for name, entry in value.items():
        if name == "score" or not isinstance(name, str):
            continue
        try:
            shown[name] = number(entry)
        except (TypeError, ValueError):
            continue
    return Result({OWN: number(value["score"], "score is")}, shown)


def number(value: Any, what: str = "returned") -> float:
    """A finite float from a number, a bool, or a scalar of numpy or torch. Raises TypeError or ValueError."""
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, int | float):
        try:
            value = item()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{what} {_short(value)}; expected one number") from None
    if not isinstance(value, int | float):
        raise TypeError(f"{what} {_short(value)}; expected a number")
    try:
        converted = float(value)
    except OverflowError:
        raise ValueError(f"{what} a whole number that no float holds") from None
    if not math.isfinite(converted):
        raise ValueError(f"{what} {converted}; expected a finite number")
    return converted


def _reason(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"invalid is {_short(value)}; expected the reason as text")
    return value


def _steps(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TypeError(f"steps is {_short(value)}; expected a list of (end character, score), not empty")
    steps: list[tuple[int, float]] = []
    for step in value:
        if not isinstance(step, Sequence) or len(step) != 2:
            raise TypeError(f"a step is {_short(step)}; expected (end character, score)")
        end = number(step[0], "a step's end is")
        if end != int(end) or end <= (steps[-1][0] if steps else 0):
            raise ValueError(f"a step ends at {_short(step[0])}; expected whole numbers above 0 that grow")
        steps.append((int(end), number(step[1], "a step's score is")))
    return tuple(steps)


def _short(value: Any) -> str:
    """A value on one line; its type if it cannot be shown."""
    try:
        return f"{type(value).__name__} {reprlib.repr(value)}".replace("\n", " ")[:80]
    except Exception:
        return f"a {type(value).__name__}"
