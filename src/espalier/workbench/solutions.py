"""Solutions in steps with a process reward model's scores, one number per solution, and how well it separates them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from espalier.errors import ModelError
from espalier.types import Aggregate, Sample
from espalier.workbench.bootstrap import Array, Resampling, estimate, numbered
from espalier.workbench.from_groups import prompt_of
from espalier.workbench.reliability import log_sigmoid, sigmoid

HALF = 0.5  # the threshold of a model whose numbers are probabilities


@dataclass(frozen=True, slots=True)
class Solved:
    """One solution of a problem.

    problem: identifies the problem; its solutions are resampled together. scores: the model's score after each step, as
    logits. labels: 1 good, 0 bad, 0.5 neutral, None if not judged. solved: whether the solution is right, None if
    unknown. whole: whether these are all its steps; a solution that was cut may have a mistake further on.
    """

    problem: str
    scores: tuple[float, ...]
    labels: tuple[float | None, ...]
    solved: bool | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.labels) or not self.scores:
            got = f"{len(self.scores)} scores for {len(self.labels)} labels"
            raise ValueError(f"problem {self.problem!r}: got {got}; expected one for each of at least one step")
        if not all(map(math.isfinite, self.scores)):
            raise ModelError(f"problem {self.problem[:60]!r}: got step scores {self.scores}; expected finite numbers")

    @property
    def mistake(self) -> int | None:
        """The first bad step, the number of steps if there is none, None if that is not known."""
        for place, label in enumerate(self.labels):
            if label is None:
                return None
            if label == 0:
                return place
        return len(self.labels) if self.whole else None


def from_samples(groups: Sequence[Sequence[Sample]], scores: Sequence[Sequence[tuple[float, ...]]]) -> list[Solved]:
    """Solutions as an engine scores them: `scores` has for each sample, in order, a number for each of its reads.

    Samples with the same tokens before the first trained one are solutions of one problem; one that does not end in
    its stop token was cut.
    """
    solutions = []
    for s, reads in zip(chain.from_iterable(groups), scores, strict=True):
        problem = " ".join(map(str, prompt_of(s)))
        step_scores = tuple(score for (score,) in reads)
        labels = tuple(None if math.isnan(grade) else grade for (grade,) in s.grades)
        solved = None if s.label is None else s.label > 0.5
        solutions.append(Solved(problem, step_scores, labels, solved, s.stop == "stop"))
    return solutions


def aggregate(scores: Sequence[float], aggregation: Aggregate) -> float:
    """One number from step scores, as `losses.steps.aggregate` computes it: of p = sigma(score) the product, minimum,
    last or mean. Probabilities 0.9, 0.5, 0.8 give 0.36, 0.5, 0.8, 0.7333. Instead of the product its logarithm is
    returned, log 0.36 = -1.0217: solutions whose products are too small for a float still differ in it."""
    logs = log_sigmoid(np.asarray(scores, dtype=np.float64))
    if aggregation == "product":
        return float(logs.sum())
    p = np.exp(logs)
    if aggregation == "min":
        return float(p.min())
    if aggregation == "last":
        return float(p[-1])
    return float(p.mean())


def aggregated(solutions: Sequence[Solved], aggregation: Aggregate) -> list[float]:
    """The number of each solution; see `aggregate`."""
    return [aggregate(solution.scores, aggregation) for solution in solutions]


def probabilities(solution: Solved) -> list[float]:
    """The model's probability, for each step, that it is good."""
    p: list[float] = sigmoid(np.asarray(solution.scores, dtype=np.float64)).tolist()
    return p


def problem_numbers(solutions: Sequence[Solved]) -> list[int]:
    """The number of each solution's problem, from 0."""
    return numbered(solution.problem for solution in solutions)


def halves(solutions: Sequence[Solved], seed: int) -> tuple[list[Solved], list[Solved]]:
    """Two halves that share no problem, drawn by seed."""
    names = list(dict.fromkeys(solution.problem for solution in solutions))
    places = np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]
    in_first = {names[place] for place in places}
    first, second = [], []
    for solution in solutions:
        if solution.problem in in_first:
            first.append(solution)
        else:
            second.append(solution)
    return first, second


def auc(
    numbers: Sequence[float], good: Sequence[bool], problems: Sequence[int], resampling: Resampling
) -> dict[str, Any]:
    """Chance that a right solution has a higher number than a wrong one, over all pairs of them (equal ones count
    half); `problems` has the number of each solution's problem.

    By hand: right 3 and 1, wrong 2 and 1: of four pairs 3 > 2, 3 > 1 hold, 1 = 1 counts half: 2.5 / 4.
    """
    order = np.argsort(numbers, kind="stable")
    values = np.asarray(numbers, dtype=np.float64)[order]
    right = np.asarray(good, dtype=np.float64)[order]
    of_problem = np.asarray(problems)[order]
    # Solutions with equal numbers are one run: within it no order counts.
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))

    def chance(times: Array) -> Array:
        """The chance if each problem counts `times`, [..., problems]."""
        weights = times[..., of_problem]
        right_in_run = np.add.reduceat(weights * right, starts, axis=-1)
        wrong_in_run = np.add.reduceat(weights * (1 - right), starts, axis=-1)
        wrong_below = wrong_in_run.cumsum(-1) - wrong_in_run / 2
        wins = (right_in_run * wrong_below).sum(-1)
        # Resamples with one kind alone are 0 / 0, nan, and are left out by `estimate`.
        with np.errstate(invalid="ignore", divide="ignore"):
            shares: Array = wins / (right_in_run.sum(-1) * wrong_in_run.sum(-1))
        return shares

    count = len(values)
    return estimate(np.eye(int(of_problem.max()) + 1), chance, resampling, count, width=count)
