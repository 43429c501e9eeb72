"""What rewards say of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Fate = Literal["keep", "silent", "drop", "refilled"]
"""What becomes of a group of rollouts: trained on; counted in every denominator but not run, because its gradient is
exactly 0; out of every denominator; out, and another prompt is drawn in its place."""


Key = tuple[int, int, int]
"""Which rollout: the task's row, the epoch, the number of the sample."""


@dataclass(frozen=True, slots=True)
class Graded:
    """What one reward says of a response, and its weight in the sum."""

    score: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all rewards of a run say of one response.

    score: the weighted sum of `parts`; the stated score of an answer that does not qualify; 0 if there is an error.
    parts: what each reward says, by its name; one that does not apply to the task is left out.
    invalid: why the answer does not qualify (empty if it does). It keeps its place in every baseline.
    error: why it could not be graded (empty if it could): the reward's name, then the cause. Such a sample leaves its
        group before anything is computed.
    steps: scores of parts of the response: (place in the response of the last token that a step covers, score).
    """

    score: float
    parts: dict[str, Graded] = field(default_factory=dict)
    invalid: str = ""
    error: str = ""
    steps: tuple[tuple[int, float], ...] = ()
