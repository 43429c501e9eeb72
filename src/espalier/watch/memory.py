"""Watches resident memory: what grows step by step ends a long run hours later, without a word about why."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WINDOW = 100
"""Steps over which growth is measured."""
SETTLING = 20
"""First steps of a process, in which allocators and caches fill up."""
LEAST = 64 * 2**20
SHARE = 0.02
CERTAIN = 4
"""Bytes, share of what is held, and standard errors that the growth over a window must exceed."""
BEGINNING = "resident memory grows by"


class MemoryWatch:
    """Takes (step, numbers) and returns a line, once, if `resident_bytes` has grown over the last 100 steps.

    Growth is the least-squares slope times the steps of the window. It counts if it is above 64 MiB, 2 % of the mean
    and 4 of its standard errors, and if each half of the window grows by at least a quarter of it: a single jump, such
    as a larger buffer, grows in one half at most. The first 20 steps of a process are left out.
    """

    def __init__(self) -> None:
        self._bytes: deque[float] = deque(maxlen=WINDOW)
        self._seen = 0
        self._warned = False

    @classmethod
    def replay(cls, lines: Iterable[Mapping[str, Any]]) -> MemoryWatch:
        """The watch of a process that goes on after these lines of metrics.jsonl. It does not warn again if a note of
        theirs did, and compares the memory of its own process alone."""
        watch = cls()
        watch._warned = any(note.startswith(BEGINNING) for line in lines for note in line.get("notes", []))
        return watch

    def see(self, step: int, numbers: Mapping[str, Any]) -> list[str]:
        """Take the numbers of a step; those of an evaluation have no `resident_bytes`."""
        held = numbers.get("resident_bytes")
        if held is None or self._warned:
            return []
        self._seen += 1
        if self._seen <= SETTLING:
            return []
        self._bytes.append(float(held))
        if len(self._bytes) < WINDOW:
            return []
        values = list(self._bytes)
        growth, mean = slope(values) * WINDOW, sum(values) / WINDOW
        halves = [slope(half) * len(half) for half in (values[: WINDOW // 2], values[WINDOW // 2 :])]
        if growth <= max(LEAST, SHARE * mean, CERTAIN * WINDOW * slope_error(values)) or min(halves) < growth / 4:
            return []
        self._warned = True
        return [
            f"{BEGINNING} {growth / WINDOW / 2**20:.2f} MiB a step: {growth / 2**20:,.0f} MiB over the "
            f"last {WINDOW} steps, to {values[-1] / 2**30:.2f} GiB. What it means: something is held that is never "
            "freed, and the run ends when memory does. What to do: look at what a user's reward keeps (graders are "
            "processes of their own, but batches wait here), save often (--save-every), and report this"
        ]


def slope(values: Sequence[float]) -> float:
    """The least-squares slope of values at 0, 1, 2 ...; at least two.

    >>> slope([1.0, 3.0, 5.0])
    2.0
    """
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    across = sum((place - middle) * (value - mean) for place, value in enumerate(values))
    return across / sum((place - middle) ** 2 for place in range(len(values)))


def slope_error(values: Sequence[float]) -> float:
    """The standard error of `slope`, if what is left around the line is independent: sqrt(sum of squares left / (n - 2)
    / sum over places of their squares around the middle)."""
    count, mean, rise = len(values), sum(values) / len(values), slope(values)
    middle = (count - 1) / 2
    left = sum((value - mean - rise * (place - middle)) ** 2 for place, value in enumerate(values))
    return math.sqrt(left / (count - 2) / sum((place - middle) ** 2 for place in range(count)))
