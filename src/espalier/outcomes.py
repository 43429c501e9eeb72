"""What rewards say of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Fate = Literal["keep", "silent", "drop", "refilled"]
"""What becomes of a group of rollouts: trained on; counted in every denominator but not run, because its gradient is
exactly 0; out of every denominator; out, and another prompt is drawn in its place."""


Key = tuple[int, int, int]
"""Which rollout: the task's row, the epoch, the number of the sample."""


@dataclass(frozen=True, slots=True)
class Graded:
    """What one reward says of a response, and its weight in the sum. `raw` is what it gave, if a gate made it 0."""

    score: float
    weight: float = 1.0
    raw: float | None = None

    @property
    def alone(self) -> float:
        """What the reward gave, whatever the others did."""
        return self.score if self.raw is None else self.raw


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all rewards of a run say of one response.

    score: the weighted sum of `parts`; the stated score of an answer that does not qualify; 0 if there is an error.
    parts: what each reward says, by its name; one that does not apply to the task is left out.
    invalid: why the answer does not qualify (empty if it does). It keeps its place in every baseline.
    error: why it could not be graded (empty if it could): the reward's name, then the cause. Such a sample leaves its
        group before anything is computed.
    closed: a gate did not open, so that whatever stands behind the rules counts 0.
    steps: scores of parts of the response: (place in the response of the last token that a step covers, score).
    """

    score: float
    parts: dict[str, Graded] = field(default_factory=dict)
    invalid: str = ""
    error: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    closed: bool = False


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """A JSON object from which `outcome_from_json` gives an equal outcome; entries that are empty are left out.

    >>> outcome_to_json(Outcome(1.0, {"exact": Graded(1.0)}))
    {'score': 1.0, 'parts': {'exact': [1.0, 1.0]}}
    """
    entries: dict[str, Any] = {"score": outcome.score}
    if outcome.parts:
        entries["parts"] = {name: _numbers(graded) for name, graded in outcome.parts.items()}
    for name in ("invalid", "error", "steps", "closed"):
        if getattr(outcome, name):
            entries[name] = getattr(outcome, name)
    return entries


def outcome_from_json(entries: dict[str, Any]) -> Outcome:
    """What `outcome_to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    return Outcome(
        score=float(entries["score"]),
        parts={name: Graded(*(float(number) for number in part)) for name, part in entries.get("parts", {}).items()},
        invalid=str(entries.get("invalid", "")),
        error=str(entries.get("error", "")),
        steps=tuple((int(place), float(score)) for place, score in entries.get("steps", ())),
        closed=bool(entries.get("closed", False)),
    )


def _numbers(graded: Graded) -> list[float]:
    numbers = [graded.score, graded.weight]
    return numbers if graded.raw is None else [*numbers, graded.raw]
