"""The seam between the loop and what it draws from: offline data (`loop.offline`) or rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Roles
from espalier.types import Draw


class Source(Protocol):
    """What a run learns from, step by step. All ranks see the same draws."""

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        ...

    def draw(self, step: int) -> Draw:
        """The groups of a step: a function of the step, the seed and the weights alone.

        Raises `signals.Interrupted`, on all ranks or on none, if a stop is requested meanwhile. The loop then leaves
        the step out, and the run goes on with the same step when it is resumed, so nothing may have been changed that
        a second draw would see.
        """
        ...

    def records(self, step: int) -> list[dict[str, Any]]:
        """Lines of samples.jsonl about the last draw, which was that of `step`; called on ranks that write, once its
        updates are made. The samples that ran have their streams `old_logprobs` and `entropy` then. None offline."""
        ...

    def moved(self, version: int) -> None:
        """The weights are those after `version` steps now: after every step, and when a run is resumed."""
        ...

    def evaluate(self, roles: Roles, algorithm: Algorithm, state: dict[str, float]) -> dict[str, float]:
        """Numbers of held-out data, by names that begin with `eval_`; empty without data. Among them is `eval_score`,
        by which the best step is chosen: higher is better.

        May raise `signals.Interrupted`, as `draw`; a resumed run then begins with this evaluation.
        """
        ...

    def heed(self, requested: Callable[[], bool]) -> None:
        """`requested()` says whether a stop was requested of this process; handed over before the first draw."""
        ...

    def state(self) -> dict[str, int]:
        """Counts that a checkpoint must hold, as after the last draw; empty offline."""
        ...

    def restore(self, counts: Mapping[str, int]) -> None:
        """Take what `state` returned."""
        ...

    def epoch_of(self, step: int) -> float:
        """Passes over the data that the steps before `step` made."""
        ...

    def consumed(self, step: int) -> str:
        """A digest of all rows of the steps before `step`."""
        ...
