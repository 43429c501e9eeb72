"""Solutions in steps with a process reward model's scores, and the statistics that need more than a ratio of sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espalier.errors import ModelError
from espalier.types import Aggregate, Sample
from espalier.workbench.bootstrap import Resampling

Array = np.ndarray
HALF = 0.5  # the threshold of a model that means its probabilities
_CHUNK = 2_000_000  # entries of a matrix of resamples at a time


@dataclass(frozen=True, slots=True)
class Solved:
    """One solution of a problem.

    problem: names the problem; its solutions are resampled together. scores: what the model says after each step, as
    logits. labels: 1 good, 0 bad, 0.5 neutral, None where nobody says. solved: whether the solution is right. whole:
    whether these are all its steps; of a solution that was cut, nobody can say that it has no mistake.
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
        """The first bad step, the number of steps where there is none, None where that is not known."""
        for i, label in enumerate(self.labels):
            if label is None or label == 0:
                return None if label is None else i
        return len(self.labels) if self.whole else None


def from_samples(groups: Sequence[Sequence[Sample]], scores: Sequence[Sequence[tuple[float, ...]]]) -> list[Solved]:
    """Solutions as an engine scores them: `scores` has for each sample, in order, a number for each of its reads.

    Samples with the same tokens before the first trained one are solutions of one problem; one that does not end in
    its stop token was cut.
    """
    made = []
    for s, said in zip((s for group in groups for s in group), scores, strict=True):
        prompt = s.tokens[: s.mask.index(True)] if True in s.mask else s.tokens
        labels = tuple(None if math.isnan(grade) else grade for (grade,) in s.grades)
        solved = None if s.label is None else s.label > 0.5
        made.append(Solved(" ".join(map(str, prompt)), tuple(x for (x,) in said), labels, solved, s.stop == "stop"))
    return made


def aggregate(scores: Sequence[float], how: Aggregate) -> float:
    """One number from step scores, as `losses.steps.aggregate` makes it: of p = sigma(score) the product, minimum, last
    or mean. Probabilities 0.9, 0.5, 0.8 give 0.36, 0.5, 0.8, 0.7333. The product is its logarithm's sum: below what a
    float holds, solutions still differ, so the logarithm is returned: log 0.36 = -1.0217."""
    logs = -np.logaddexp(0, -np.asarray(scores, dtype=np.float64))
    if how == "product":
        return float(logs.sum())
    p = np.exp(logs)
    return float({"min": p.min(), "last": p[-1], "mean": p.mean()}[how])


def probabilities(s: Solved) -> list[float]:
    made: list[float] = np.exp(-np.logaddexp(0, -np.asarray(s.scores, dtype=np.float64))).tolist()
    return made


def problem_numbers(solutions: Sequence[Solved]) -> list[int]:
    """The number of each solution's problem, from 0."""
    seen: dict[str, int] = {}
    return [seen.setdefault(s.problem, len(seen)) for s in solutions]


def halves(solutions: Sequence[Solved], seed: int) -> tuple[list[Solved], list[Solved]]:
    """Two halves that share no problem, drawn by seed."""
    names = list(dict.fromkeys(s.problem for s in solutions))
    drawn = np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]
    chosen = {names[i] for i in drawn}
    return [s for s in solutions if s.problem in chosen], [s for s in solutions if s.problem not in chosen]


def estimate(
    sums: Array, statistic: Callable[[Array], Array], how: Resampling, count: int, width: int = 1
) -> dict[str, Any]:
    """A statistic of sums over problems [C, m] with its percentile interval; None where it is not defined. Resamples in
    which it is not defined are left out. `width`: entries that the statistic makes of one resample."""
    whole = float(statistic(sums.sum(0)))
    if math.isnan(whole):
        return {"value": None, "low": None, "high": None, "n": count, "prompts": len(sums)}
    random, drawn = np.random.default_rng(how.seed), []
    size = max(1, _CHUNK // max(width, len(sums)))
    for begin in range(0, how.resamples, size):
        n = min(size, how.resamples - begin)
        times = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=n)
        drawn.append(statistic(times @ sums))
    made = np.concatenate(drawn)
    made, tail = made[~np.isnan(made)], (1 - how.confidence) / 2
    low, high = (float(x) for x in np.quantile(made, (tail, 1 - tail))) if len(sums) > 1 else (None, None)
    return {"value": whole, "low": low, "high": high, "n": count, "prompts": len(sums)}


def auc(numbers: Sequence[float], good: Sequence[bool], where: Sequence[int], how: Resampling) -> dict[str, Any]:
    """Chance that a right solution stands above a wrong one, over all pairs of them, `where` numbering their problems.

    By hand: right 3 and 1, wrong 2 and 1: of four pairs 3 > 2, 3 > 1 hold, 1 = 1 counts half: 2.5 / 4.
    """
    order = np.argsort(numbers, kind="stable")
    x, y = np.asarray(numbers, dtype=np.float64)[order], np.asarray(good, dtype=np.float64)[order]
    cluster = np.asarray(where)[order]
    starts = np.flatnonzero(np.concatenate([[True], x[1:] != x[:-1]]))

    def chance(counts: Array) -> Array:
        weights = counts[..., cluster]
        up = np.add.reduceat(weights * y, starts, axis=-1)
        down = np.add.reduceat(weights * (1 - y), starts, axis=-1)
        wins = (up * (down.cumsum(-1) - down / 2)).sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            made: Array = wins / (up.sum(-1) * down.sum(-1))
        return made

    return estimate(np.eye(int(cluster.max()) + 1), chance, how, len(x), width=len(x))
