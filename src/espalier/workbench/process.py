"""The workbench of a process reward model: the first mistake, single steps, whole solutions, and the choice among
several solutions of a problem beside an outcome reward model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from espalier.types import Aggregate
from espalier.workbench.bestof import best_of, largest_n, oracle, random_choice
from espalier.workbench.bootstrap import Resampling, mean
from espalier.workbench.mistakes import choose_threshold, first_error, steps
from espalier.workbench.solutions import HALF, Solved, aggregated, auc, halves, problem_numbers
from espalier.workbench.tables import Rows, estimate_text, flat, number_text

AGGREGATIONS: tuple[Aggregate, ...] = get_args(Aggregate)


def process(solutions: Sequence[Solved], resampling: Resampling | None = None) -> dict[str, Any]:
    """Measure a process reward model.

    counts       problems, solutions, steps, good, bad (steps), first_mistakes (solutions whose first mistake, or that
                 there is none, is known), outcomes (solutions known to be right or wrong)
    first_error  `first_error` at 1/2, over all; None if nothing is known
    tuned        the same at a threshold chosen on one half of the problems and reported on the other
    steps        `steps`
    solutions    `whole_solutions` by way of aggregation; None if no outcome is known

    Estimates are {"value", "low", "high", "n", "prompts"}: intervals by resampling problems.
    """
    resampling = resampling or Resampling()
    known = [s for s in solutions if s.mistake is not None]
    outcomes = [s for s in solutions if s.solved is not None]
    labels = [label for s in solutions for label in s.labels]
    return {
        "counts": {
            "problems": len({s.problem for s in solutions}),
            "solutions": len(solutions),
            "steps": len(labels),
            "good": labels.count(1),
            "bad": labels.count(0),
            "first_mistakes": len(known),
            "outcomes": len(outcomes),
        },
        "first_error": first_error(known, HALF, resampling) if known else None,
        "tuned": _tuned_first_error(known, resampling),
        "steps": steps(solutions, resampling),
        "solutions": _by_aggregation(outcomes, resampling),
        "intervals": {
            "seed": resampling.seed,
            "resamples": resampling.resamples,
            "confidence": resampling.confidence,
        },
    }


def _tuned_first_error(known: Sequence[Solved], resampling: Resampling) -> dict[str, Any] | None:
    """`first_error` on one half of the problems, at the threshold that is best on the other."""
    first, second = halves(known, resampling.seed)
    if not first or not second:
        return None
    threshold = choose_threshold(first)
    return {"threshold": threshold, "chosen_on": len(first), **first_error(second, threshold, resampling)}


# ------------------------------------------------------------------------------------------------------ whole solutions


def _by_aggregation(outcomes: Sequence[Solved], resampling: Resampling) -> dict[str, Any] | None:
    if not outcomes:
        return None
    return {name: whole_solutions(outcomes, name, resampling) for name in AGGREGATIONS}


def whole_solutions(outcomes: Sequence[Solved], name: Aggregate, resampling: Resampling) -> dict[str, Any]:
    """The aggregated number against the outcome.

    accuracy    share of solutions whose number is at least 1/2 exactly if they are right
    tuned       the same at a threshold chosen on one half of the problems and reported on the other; None if there
                are no two halves. A product of many good steps lies far below 1/2, so this is how it should be read
    auc         chance that a right solution has a higher number than a wrong one, equal ones counting half
    """
    cut = math.log(HALF) if name == "product" else HALF
    return {
        "accuracy": _accuracy_at(outcomes, name, cut, resampling),
        "tuned": _tuned_accuracy(outcomes, name, resampling),
        "auc": auc(aggregated(outcomes, name), _right(outcomes), problem_numbers(outcomes), resampling),
    }


def _tuned_accuracy(outcomes: Sequence[Solved], name: Aggregate, resampling: Resampling) -> dict[str, Any] | None:
    first, second = halves(outcomes, resampling.seed)
    if not first or not second:
        return None
    cut = best_cut(aggregated(first, name), _right(first))
    # The number of a product is its logarithm; people read the product.
    threshold = math.exp(cut) if name == "product" else cut
    return {"threshold": threshold, "chosen_on": len(first), **_accuracy_at(second, name, cut, resampling)}


def _accuracy_at(solutions: Sequence[Solved], name: Aggregate, cut: float, resampling: Resampling) -> dict[str, Any]:
    called_right = np.array(aggregated(solutions, name)) >= cut
    agrees = (called_right == np.array(_right(solutions))).astype(np.float64)
    return mean(agrees.tolist(), problem_numbers(solutions), resampling, share=True)


def _right(solutions: Sequence[Solved]) -> list[bool]:
    return [bool(s.solved) for s in solutions]


def best_cut(numbers: Sequence[float], good: Sequence[bool]) -> float:
    """The number from which on to say "right" with the fewest errors, midway between two that occur; of equally good
    ones the middle one."""
    order = np.argsort(numbers, kind="stable")
    values, right = np.asarray(numbers)[order], np.asarray(good, dtype=np.float64)[order]
    # Right solutions below the cut are errors, and wrong ones from it on. There is a cut before each number and one
    # behind the last.
    right_below = np.concatenate([[0.0], np.cumsum(right)])
    wrong_below = np.concatenate([[0.0], np.cumsum(1 - right)])
    errors = right_below + (1 - right).sum() - wrong_below
    cuts = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], math.inf)]])
    # No cut separates equal numbers.
    errors[1:-1][values[1:] == values[:-1]] = math.inf
    best = np.flatnonzero(errors == errors.min())
    return float(cuts[best[len(best) // 2]])


# -------------------------------------------------------------------------------------------- beside an outcome model


@dataclass(frozen=True, slots=True)
class _Problem:
    """A problem with several solutions: their places, and whether each is right."""

    places: list[int]
    good: list[bool]


def against_outcome(
    solutions: Sequence[Solved], outcome: Sequence[float], resampling: Resampling | None = None
) -> dict[str, Any] | None:
    """A process reward model, by each aggregation, beside an outcome reward model on the same solutions.

    `outcome` has the outcome model's score of each of them. Kept are problems with two or more solutions that are all
    known to be right or wrong; None without any. With N the solutions that nine tenths of these problems have (others
    are `left_out`):

    judges     for each of outcome, product, min, last, mean: `auc`, and `best_of_n`, the share of problems whose
               highest-scored of n solutions is right, expected over all choices of n of its solutions
    gains      for each aggregation and n, best-of-n minus the outcome model's, resampled together
    random, oracle   what a random choice, and the best possible one, would reach

    Raises ValueError if `outcome` has not one finite number for each solution.

    Lightman et al., arXiv:2305.20050, figure 3, and Uesato et al., arXiv:2211.14275, compare them so.
    """
    resampling = resampling or Resampling()
    if len(outcome) != len(solutions) or not all(map(math.isfinite, outcome)):
        got = f"{len(outcome)} scores for {len(solutions)} solutions"
        raise ValueError(f"outcome: got {got}; expected a finite one for each")
    usable = _judged_problems(solutions)
    if not usable:
        return None
    most = largest_n(len(problem.places) for problem in usable)
    kept = [problem for problem in usable if len(problem.places) >= most]
    scores = {"outcome": list(outcome)}
    for aggregation in AGGREGATIONS:
        scores[aggregation] = aggregated(solutions, aggregation)
    curves = {name: _choices(values, kept, most) for name, values in scores.items()}
    judges, gains = {}, {}
    for name, values in scores.items():
        best_of_n = [_over_problems(right, resampling, share=True) for right in curves[name]]
        judges[name] = {"auc": _separation(values, kept, resampling), "best_of_n": best_of_n}
        if name != "outcome":
            gains[name] = _gains(curves[name], curves["outcome"], resampling)
    good = [problem.good for problem in kept]
    return {
        "problems": len(kept),
        "left_out": len(usable) - len(kept),
        "judges": judges,
        "gains": gains,
        "random": random_choice(good),
        "oracle": [oracle(good, n) for n in range(1, most + 1)],
    }


def _judged_problems(solutions: Sequence[Solved]) -> list[_Problem]:
    """Problems with two or more solutions that are all known to be right or wrong."""
    places: dict[str, list[int]] = {}
    for place, solution in enumerate(solutions):
        places.setdefault(solution.problem, []).append(place)
    problems = []
    for members in places.values():
        good = _right([solutions[place] for place in members if solutions[place].solved is not None])
        # One unknown outcome makes the best of n unknown: the problem is left out whole.
        if len(members) > 1 and len(good) == len(members):
            problems.append(_Problem(members, good))
    return problems


def _choices(values: Sequence[float], problems: Sequence[_Problem], most: int) -> list[list[float]]:
    """For each n from 1 to `most`, how often the highest-valued of n solutions is right, one number per problem."""
    curve = []
    for n in range(1, most + 1):
        right = []
        for problem in problems:
            numbers = [values[place] for place in problem.places]
            right.append(best_of(numbers, problem.good, n))
        curve.append(right)
    return curve


def _gains(curve: Sequence[list[float]], base: Sequence[list[float]], resampling: Resampling) -> list[dict[str, Any]]:
    """The difference of two curves at each n, resampled together: both are of the same problems."""
    points = []
    for right, right_of_base in zip(curve, base, strict=True):
        difference = [one - other for one, other in zip(right, right_of_base, strict=True)]
        points.append(_over_problems(difference, resampling, share=False))
    return points


def _over_problems(values: Sequence[float], resampling: Resampling, *, share: bool) -> dict[str, Any]:
    """The mean of one value per problem."""
    return mean(values, range(len(values)), resampling, share=share)


def _separation(values: Sequence[float], problems: Sequence[_Problem], resampling: Resampling) -> dict[str, Any]:
    """The AUC of values over the solutions of all problems."""
    numbers, good, of_problem = [], [], []
    for number, problem in enumerate(problems):
        for place, right in zip(problem.places, problem.good, strict=True):
            numbers.append(values[place])
            good.append(right)
            of_problem.append(number)
    return auc(numbers, good, of_problem, resampling)


# ------------------------------------------------------------------------------------------------------------- in words


def findings(report: Mapping[str, Any], against: Mapping[str, Any] | None = None) -> list[tuple[str, str, str]]:
    """Every figure of `process`, and of `against_outcome` if given, as (section, what, value), in reading order."""
    return flat(
        {
            "first mistake": _first_mistake_rows(report["first_error"]),
            "first mistake, tuned": _first_mistake_rows(report["tuned"]),
            "steps": _step_rows(report["steps"]),
            "solutions": _solution_rows(report["solutions"]),
            "process and outcome": _outcome_rows(against),
        }
    )


def _first_mistake_rows(figures: Mapping[str, Any] | None) -> Rows:
    if figures is None:
        return []
    return [
        ("accuracy, all solutions", _threshold(figures, ".3f") + estimate_text(figures["accuracy"])),
        ("accuracy, solutions with a mistake: the exact step is named", estimate_text(figures["erroneous"])),
        ("accuracy, solutions without a mistake: no step is called bad", estimate_text(figures["correct"])),
        ("harmonic mean of these two (ProcessBench F1)", estimate_text(figures["f1"])),
    ]


def _threshold(figures: Mapping[str, Any], form: str) -> str:
    """Where a tuned threshold comes from; empty at the fixed one."""
    if "threshold" not in figures:
        return ""
    return f"threshold {figures['threshold']:{form}}, chosen on {figures['chosen_on']:,} others; "


def _step_rows(figures: Mapping[str, Any] | None) -> Rows:
    if figures is None:
        return []
    return [
        ("accuracy", estimate_text(figures["accuracy"])),
        ("bad steps, precision", estimate_text(figures["precision"])),
        ("bad steps, recall", estimate_text(figures["recall"])),
        ("bad steps, F1", estimate_text(figures["f1"])),
        ("expected calibration error", number_text(figures["ece"])),
        ("Brier score (0.25 = chance)", estimate_text(figures["brier"], ".3f")),
    ]


def _solution_rows(solutions: Mapping[str, Any] | None) -> Rows:
    rows = []
    for name, figures in (solutions or {}).items():
        rows.append((f"{name}, accuracy at 1/2", estimate_text(figures["accuracy"])))
        if figures["tuned"] is not None:
            text = _threshold(figures["tuned"], ".3g") + estimate_text(figures["tuned"])
            rows.append((f"{name}, accuracy at a tuned threshold", text))
        rows.append((f"{name}, AUC (0.5 = chance)", estimate_text(figures["auc"], ".3f")))
    return rows


def _outcome_rows(against: Mapping[str, Any] | None) -> Rows:
    if against is None:
        return []
    rows, n = [], len(against["oracle"])
    for name, judge in against["judges"].items():
        rows.append((f"{name}, AUC (0.5 = chance)", estimate_text(judge["auc"], ".3f")))
        rows.append((f"{name}, best of {n}", estimate_text(judge["best_of_n"][-1])))
    for name, gains in against["gains"].items():
        rows.append((f"{name} minus outcome, best of {n}", estimate_text(gains[-1], "+.1%")))
    limits = f"{against['random']:.1%} and {against['oracle'][-1]:.1%}"
    rows.append((f"random choice and oracle, best of {n}", limits))
    return rows
