"""What a watch knows of a run: the numbers of its first window of steps and of its last one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Numbers = Mapping[str, float]
CERTAIN = 3.0  # standard errors


@dataclass(frozen=True, slots=True)
class Shift:
    """The mean of a quantity over the first window and over the last, with the standard error of their difference."""

    first: float
    now: float
    error: float

    @property
    def by(self) -> float:
        return self.now - self.first

    @property
    def sure(self) -> bool:
        """Whether the two means differ by more than noise."""
        return abs(self.by) > CERTAIN * self.error


class History:
    """The first and the last `window` steps of a run, and its last held-out accuracy as (step, accuracy)."""

    def __init__(self, window: int):
        self.window = window
        self.seen = 0
        self.first_step = 0
        self.first: list[Numbers] = []
        self.last: deque[Numbers] = deque(maxlen=window)
        self.held_out: tuple[int, float] | None = None
        self._steps: deque[int] = deque(maxlen=window)

    def add(self, step: int, numbers: Numbers) -> None:
        """Take the numbers of a training step."""
        if not self.seen:
            self.first_step = step
        self.seen += 1
        if len(self.first) < self.window:
            self.first.append(numbers)
        self.last.append(numbers)
        self._steps.append(step)

    @property
    def full(self) -> bool:
        """Whether a whole window of steps has been seen."""
        return len(self.last) == self.window

    @property
    def step(self) -> int:
        """The last step."""
        return self._steps[-1]

    @property
    def single_answers(self) -> bool:
        """Whether the run learns from single answers, good and bad ones, and not from pairs."""
        return "good" in self.last[-1]

    def mean(self, name: str) -> float | None:
        """The mean over the last window; None if a step of it lacks the number."""
        values = [numbers[name] for numbers in self.last if name in numbers]
        return sum(values) / len(values) if len(values) == self.window else None

    def shift(self, quantity: Callable[[Numbers], float | None]) -> Shift | None:
        """The last window against the first; None while they overlap, or if a step lacks the quantity."""
        if self.seen < 2 * self.window:
            return None
        first, now = _known(self.first, quantity), _known(self.last, quantity)
        if len(first) < self.window or len(now) < self.window:
            return None
        (first_mean, first_variance), (mean, variance) = _moments(first), _moments(now)
        return Shift(first_mean, mean, math.sqrt((first_variance + variance) / self.window))

    def logprobs(self, side: str) -> Shift | None:
        """Log-probabilities of `chosen` or `rejected` answers: nats per token if lengths are known, else per answer."""
        return self.shift(lambda numbers: _logprob(numbers, side))

    def rewards(self, side: str) -> Shift | None:
        return self.shift(lambda numbers: numbers.get(f"rewards_{side}"))

    def margin(self) -> Shift | None:
        return self.shift(lambda numbers: numbers.get("margin"))

    # ---------------------------------------------------------------------------------------------------------- words

    def last_steps(self) -> str:
        return f"steps {self._steps[0]} to {self._steps[-1]}"

    def both_windows(self) -> str:
        return f"means over the first {self.window} steps, from step {self.first_step}, and over {self.last_steps()}"

    def held_out_text(self) -> str:
        """The last held-out accuracy as a sentence, with a space before it; empty if there is none."""
        if self.held_out is None:
            return ""
        step, accuracy = self.held_out
        return f" Held-out accuracy: {accuracy:.1%} at step {step}."


def finite_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line; metrics.jsonl writes others as text, and they would spoil a mean."""
    numbers = {}
    for name, value in line.items():
        if isinstance(value, int | float) and math.isfinite(value):
            numbers[name] = float(value)
    return numbers


def as_sides(numbers: Numbers) -> dict[str, float]:
    """Numbers of single answers under the names of pairs: means over the good ones as chosen, over the bad ones as
    rejected, and the margin of their rewards, to which BCO's moving `delta` is added back. A side without an answer
    has none.

    >>> as_sides({"good": 0.25, "rewards_good": 0.5, "rewards_bad": -0.75})
    {'rewards_chosen': 2.0, 'rewards_rejected': -1.0, 'margin': 3.0}
    """
    sides: dict[str, float] = {}
    if "good" not in numbers:
        return sides
    delta = numbers.get("delta", 0.0)
    for side, name, share in (("chosen", "good", numbers["good"]), ("rejected", "bad", 1 - numbers["good"])):
        if share <= 0:
            continue
        # The logged numbers are sums over a side divided by all answers.
        if f"rewards_{name}" in numbers:
            sides[f"rewards_{side}"] = numbers[f"rewards_{name}"] / share + delta
        if f"logprobs_{name}" in numbers:
            sides[f"logprobs_{side}"] = numbers[f"logprobs_{name}"] / share
    if "rewards_chosen" in sides and "rewards_rejected" in sides:
        sides["margin"] = sides["rewards_chosen"] - sides["rewards_rejected"]
    return sides


def _logprob(numbers: Numbers, side: str) -> float | None:
    """The log-probability of a side, per token if its length is known."""
    logprob, length = numbers.get(f"logprobs_{side}"), numbers.get(f"length_{side}", 1.0)
    if logprob is None or length <= 0:
        return None
    return logprob / length


def _known(window: Sequence[Numbers] | deque[Numbers], quantity: Callable[[Numbers], float | None]) -> list[float]:
    """The quantity in those steps of a window that have it."""
    values = []
    for numbers in window:
        value = quantity(numbers)
        if value is not None:
            values.append(value)
    return values


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance (of n - 1)."""
    mean = sum(values) / len(values)
    return mean, sum((x - mean) ** 2 for x in values) / (len(values) - 1)
