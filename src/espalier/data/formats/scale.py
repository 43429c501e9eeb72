"""What numbers mean that label steps: decided once, by all rows of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

Notes = dict[str, int]
"""What was done to the rows of a source, in words, and how often."""
Scale = Literal["labels", "ratings", "soft"]
"""labels: 0 is bad, 1 good. ratings: -1 is bad, 0 neutral, 1 good. soft: the chance that a step is good, 0 to 1."""
STEPS = ("steps", "completions")
LABELS = ("labels", "ratings", "rating", "label")
RATINGS = ("ratings", "rating")
"""Labels of which 0 is neutral, whatever the scale of others is."""
WITHOUT_RATINGS = ("labels", "label")
_SOLUTIONS = ("solutions", "responses", "response")
SAID: dict[Scale, str] = {
    "labels": "rows whose step labels are numbers: 1 good, 0 bad, as no -1 stands in any row",
    "ratings": "rows whose step labels are numbers: 1 good, 0 neutral, -1 bad",
    "soft": "rows whose step labels are chances of being good: trained as they are, with no neutral one and no mistake",
}


def add(notes: Notes, what: str, count: int = 1) -> None:
    """Count something that was done to rows."""
    notes[what] = notes.get(what, 0) + count


class SourceScale:
    """The scale of a source's step labels: decided by all its rows (`rows()`) at the first one that has numbers, and
    said in `notes`."""

    def __init__(self, rows: Callable[[], Iterable[Any]], notes: Notes) -> None:
        self._rows, self._notes = rows, notes
        self._scale: Scale | None = None

    def of(self, row: Any) -> Scale | None:
        """The scale for a row; None if it has no numbers."""
        if next(numbers(row), None) is None:
            return None
        if self._scale is None:
            self._scale = scale_of(self._rows())
        rated = self._scale == "labels" and next(numbers(row, WITHOUT_RATINGS), None) is None
        add(self._notes, SAID["ratings" if rated else self._scale])
        return self._scale


def scale_of(rows: Iterable[Any]) -> Scale:
    """The scale of the numbers that label steps in these rows: ratings if any is -1, else soft if any lies between 0
    and 1, else labels.

    >>> scale_of([{"labels": [1, 0]}]), scale_of([{"labels": [1, 0]}, {"labels": [-1]}])
    ('labels', 'ratings')
    >>> scale_of([{"steps": [{"text": "a", "label": 0.7}]}])
    'soft'
    """
    scale: Scale = "labels"
    for row in rows:
        for number in numbers(row):
            if number == -1:
                return "ratings"
            if 0 < number < 1:
                scale = "soft"
    return scale


def numbers(row: Any, names: Sequence[str] = LABELS) -> Iterator[float]:
    """The numbers that label steps in a row under some of LABELS, in lists beside them or in the steps themselves."""
    if not isinstance(row, dict):
        return
    for key in names:
        # Not what stands beside plain steps as one number: the place of the first mistake.
        yield from _numbers(dict.get(row, key))
    for key in STEPS:
        steps = dict.get(row, key)
        for step in steps if isinstance(steps, list) else ():
            if isinstance(step, dict):
                yield from _numbers([dict.get(step, name) for name in names])
    for key in _SOLUTIONS:
        solutions = dict.get(row, key)
        for solution in solutions if isinstance(solutions, list) else ():
            yield from numbers(solution, names)


def _numbers(values: Any) -> Iterator[float]:
    for value in values if isinstance(values, list) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value
