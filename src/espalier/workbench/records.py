"""Held-out groups: answers to one prompt with a model's scores beside people's judgements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from espalier.errors import ModelError
from espalier.workbench.bootstrap import numbered


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """One answer.

    score: the model's total. scores: the model's score in each dimension (empty if there is only one). length: number
    of tokens. text: its text. label: how good people say it is among its siblings, higher is better; None if not
    judged. grades: people's grade in each dimension, nan if not graded. good: whether it is correct, None if unknown.
    """

    score: float
    scores: tuple[float, ...] = ()
    length: int = 0
    text: str = ""
    label: float | None = None
    grades: tuple[float, ...] = ()
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class HeldOutGroup:
    """The answers to one held-out prompt.

    pairs: (i, j) if people prefer response i to response j. ties: (i, j) if people find them equal. prompt: identifies
    the prompt; groups of one prompt are resampled together, because their answers are not independent; a group without
    it (empty text) is resampled by itself. by_grades: pairs and ties were computed from the responses' grades, not
    judged separately.
    """

    source: str
    prompt_tokens: int
    responses: list[JudgedResponse]
    pairs: list[tuple[int, int]] = field(default_factory=list)
    ties: list[tuple[int, int]] = field(default_factory=list)
    prompt: str = ""
    by_grades: bool = False

    @property
    def scores(self) -> list[float]:
        """The model's total score of each response."""
        return [response.score for response in self.responses]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt; `first` is the preferred one of a strict pair. `group` is the index of their group."""

    group: int
    first: JudgedResponse
    second: JudgedResponse

    @property
    def gap(self) -> float:
        """Score of the first minus score of the second."""
        return self.first.score - self.second.score

    @property
    def win(self) -> float:
        """1 if the model scores the first higher, 0 if lower, 1/2 if both are equal."""
        if self.gap > 0:
            return 1.0
        if self.gap < 0:
            return 0.0
        return 0.5


def strict_pairs(groups: Sequence[HeldOutGroup]) -> list[Pair]:
    """All pairs of which people prefer one response, the preferred one first."""
    pairs = []
    for number, group in enumerate(groups):
        for preferred, other in group.pairs:
            pairs.append(Pair(number, group.responses[preferred], group.responses[other]))
    return pairs


def tied_pairs(groups: Sequence[HeldOutGroup]) -> list[Pair]:
    """All pairs that people find equal: those judged so, and siblings of one label that no strict pair orders."""
    pairs = []
    for number, group in enumerate(groups):
        for first, second in tied_places(group):
            pairs.append(Pair(number, group.responses[first], group.responses[second]))
    return pairs


def tied_places(group: HeldOutGroup) -> Iterator[tuple[int, int]]:
    """The places of each two responses of one group that people find equal, the lower place first."""
    ties, pairs = set(group.ties), set(group.pairs)
    for first, response in enumerate(group.responses):
        for second in range(first + 1, len(group.responses)):
            both = {(first, second), (second, first)}
            same_label = response.label is not None and response.label == group.responses[second].label
            # Equal labels alone do not overrule a strict pair; a judged tie stays one.
            if both & ties or (same_label and not both & pairs):
                yield first, second


def check(groups: Sequence[HeldOutGroup]) -> None:
    """Raise ValueError for a pair of responses that do not exist, and ModelError for a score that is not finite."""
    for number, group in enumerate(groups):
        size = len(group.responses)
        for first, second in (*group.pairs, *group.ties):
            if first == second or min(first, second) < 0 or max(first, second) >= size:
                raise ValueError(
                    f"group {number}: got the pair ({first}, {second}), expected two of its {size} responses"
                )
        for response in group.responses:
            if not all(map(math.isfinite, (response.score, *response.scores))):
                raise ModelError(
                    f"group {number} of {group.source}: got the score {response.score} in {response.scores}, "
                    "expected finite numbers; the weights or their dtype overflow: try --dtype float32"
                )


def prompt_numbers(groups: Sequence[HeldOutGroup]) -> list[int]:
    """The number of each group's prompt, from 0: groups with the same number are resampled together."""
    keys: list[tuple[str, int | str]] = []
    for number, group in enumerate(groups):
        keys.append(("prompt", group.prompt) if group.prompt else ("group", number))
    return numbered(keys)
