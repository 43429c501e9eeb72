"""What the workbench looks at: held-out answers with a model's scores beside people's judgements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from espalier.errors import ModelError


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """One answer.

    score: the model's total. scores: the model's score in every dimension (empty where it has one). length: tokens of
    the response. text: its text. label: how good people say it is among its siblings, higher is better. grades:
    people's score in every dimension, nan where nobody gave one. good: whether it is correct, None where nobody knows.
    """

    score: float
    scores: tuple[float, ...] = ()
    length: int = 0
    text: str = ""
    label: float | None = None
    grades: tuple[float, ...] = ()
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """One held-out group: the answers to one prompt.

    pairs: (i, j) where people prefer response i to response j. ties: (i, j) that they find equal. prompt: groups with
    the same prompt, where one is given, are resampled together, because their answers are not independent; without one
    a group stands for itself. by_grades: pairs and ties were made of the responses' grades, not judged by themselves.
    """

    source: str
    prompt_tokens: int
    responses: list[JudgedResponse]
    pairs: list[tuple[int, int]] = field(default_factory=list)
    ties: list[tuple[int, int]] = field(default_factory=list)
    prompt: str = ""
    by_grades: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt: of a strict pair `first` is the preferred one. `group` is the place of its record."""

    group: int
    first: JudgedResponse
    second: JudgedResponse

    @property
    def gap(self) -> float:
        """Score of the first minus score of the second."""
        return self.first.score - self.second.score


def pairs(records: Sequence[Judged]) -> list[Pair]:
    """All strict pairs, the preferred response first."""
    return [Pair(g, r.responses[i], r.responses[j]) for g, r in enumerate(records) for i, j in r.pairs]


def ties(records: Sequence[Judged]) -> list[Pair]:
    """All pairs that people find equal: those named so, and siblings of the same label that no pair tells apart."""
    return [Pair(g, r.responses[i], r.responses[j]) for g, r in enumerate(records) for i, j in _equal(r)]


def _equal(record: Judged) -> Iterator[tuple[int, int]]:
    named = {(min(t), max(t)) for t in record.ties}
    strict = {(min(p), max(p)) for p in record.pairs}
    for i, a in enumerate(record.responses):
        for j in range(i + 1, len(record.responses)):
            same = a.label is not None and a.label == record.responses[j].label
            if (i, j) in named or (same and (i, j) not in strict):
                yield i, j


def checked(records: Sequence[Judged]) -> list[Judged]:
    """The records. Raises ValueError for a pair of responses that are not there, and ModelError for a score that is
    not finite."""
    for number, record in enumerate(records):
        size = len(record.responses)
        for i, j in (*record.pairs, *record.ties):
            if i == j or not (0 <= i < size and 0 <= j < size):
                raise ValueError(f"record {number}: got the pair ({i}, {j}), expected two of its {size} responses")
        for response in record.responses:
            if not all(math.isfinite(x) for x in (response.score, *response.scores)):
                raise ModelError(
                    f"record {number} of {record.source}: got the score {response.score} in {response.scores}, "
                    "expected finite numbers; the weights or their dtype overflow: try --dtype float32"
                )
    return list(records)


def clusters(records: Sequence[Judged]) -> list[int]:
    """For every record the number of its prompt, from 0: what is resampled together."""
    seen: dict[tuple[str, int | str], int] = {}
    out = []
    for number, record in enumerate(records):
        key: tuple[str, int | str] = ("prompt", record.prompt) if record.prompt else ("record", number)
        out.append(seen.setdefault(key, len(seen)))
    return out
