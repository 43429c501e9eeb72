"""The scales of scores: of the grades that people gave, and of what a scoring model says after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Grades:
    """The ends of the scale on which people gave the grades that a loss learns from."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """After training, scores are shifted so that some answers have mean 0: those that are preferred (`chosen`), or all.
    scale: they are also scaled to a standard deviation of 1 over the same answers."""

    on: Literal["chosen", "all"]
    scale: bool = False
