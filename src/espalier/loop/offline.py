"""The source of runs on given data: a step's groups are rows, and nothing is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Group, Roles
from espalier.loop.evaluate import evaluate, evaluate_loss
from espalier.types import Draw


class Rows(Protocol):
    """Rows by step: a function of the step alone."""

    steps: int

    def groups(self, step: int) -> list[Group]: ...

    def held_out(self) -> Iterator[list[Group]]:
        """Held-out groups, some at a time; empty if nothing is held out."""
        ...

    def epoch_of(self, step: int) -> float: ...

    def consumed(self, step: int) -> str:
        """A digest of all rows of the steps before `step`."""
        ...


class OfflineSource:
    """A `Source` of rows. Its `eval_score` is -eval_loss."""

    def __init__(self, rows: Rows):
        self.rows = rows

    @property
    def steps(self) -> int:
        return self.rows.steps

    def draw(self, step: int) -> Draw:
        """The rows of the step; nothing interrupts it."""
        return Draw(self.rows.groups(step))

    def records(self, step: int) -> list[dict[str, Any]]:
        """None: the data can be looked at."""
        return []

    def moved(self, version: int) -> None:
        """Nothing: rows do not depend on weights."""

    def evaluate(self, roles: Roles, algorithm: Algorithm, state: dict[str, float]) -> dict[str, float]:
        """Likelihood of the held-out rows, or the loss and its terms there, as the algorithm's traits choose."""
        if algorithm.traits.likelihood:
            numbers = evaluate(roles.policy, self.rows.held_out())
        else:
            numbers = evaluate_loss(roles, algorithm, state, self.rows.held_out())
        return {**numbers, "eval_score": -numbers["eval_loss"]} if numbers else {}

    def heed(self, requested: Callable[[], bool]) -> None:
        """Nothing: a draw takes no time."""

    def state(self) -> dict[str, int]:
        """Nothing: rows are a function of the step."""
        return {}

    def restore(self, counts: Mapping[str, int]) -> None:
        """Nothing."""

    def epoch_of(self, step: int) -> float:
        return self.rows.epoch_of(step)

    def consumed(self, step: int) -> str:
        return self.rows.consumed(step)
