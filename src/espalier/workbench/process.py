"""The workbench of a process reward model: the first mistake, single steps, whole solutions, and the choice among
several solutions of a problem beside an outcome reward model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from espalier.types import Aggregate
from espalier.workbench.bestof import any_of, best_of
from espalier.workbench.bootstrap import Resampling, ratio
from espalier.workbench.mistakes import choose_threshold, first_error, steps
from espalier.workbench.solutions import HALF, Solved, aggregate, auc, halves, problem_numbers
from espalier.workbench.tables import number, said


def process(solutions: Sequence[Solved], how: Resampling | None = None) -> dict[str, Any]:
    """Measure a process reward model.

    counts       problems, solutions, steps, good, bad (steps), first_mistakes (solutions whose first mistake, or that
                 there is none, is known), outcomes (solutions known to be right or wrong)
    first_error  `first_error` at 1/2, over all; None where nothing is known
    tuned        the same at a threshold chosen on one half of the problems and reported on the other
    steps        `steps`
    solutions    `whole_solutions` by way of aggregation; None where no outcome is known

    Estimates are {"value", "low", "high", "n", "prompts"}: intervals by resampling problems.
    """
    how = how or Resampling()
    known = [s for s in solutions if s.mistake is not None]
    outcomes = [s for s in solutions if s.solved is not None]
    labels = [label for s in solutions for label in s.labels]
    first, second = halves(known, how.seed)
    tuned = None
    if first and second:
        threshold = choose_threshold(first)
        tuned = {"threshold": threshold, "chosen_on": len(first), **first_error(second, threshold, how)}
    return {
        "counts": {
            "problems": len({s.problem for s in solutions}), "solutions": len(solutions), "steps": len(labels),
            "good": labels.count(1), "bad": labels.count(0), "first_mistakes": len(known), "outcomes": len(outcomes),
        },
        "first_error": first_error(known, HALF, how) if known else None,
        "tuned": tuned,
        "steps": steps(solutions, how),
        "solutions": {name: whole_solutions(outcomes, name, how) for name in get_args(Aggregate)} if outcomes else None,
        "intervals": {"seed": how.seed, "resamples": how.resamples, "confidence": how.confidence},
    }  # fmt: skip


def whole_solutions(outcomes: Sequence[Solved], name: Aggregate, how: Resampling) -> dict[str, Any]:
    """The aggregated number against the outcome.

    accuracy    share of solutions whose number is at least 1/2 exactly where they are right
    tuned       the same at a threshold chosen on one half of the problems and reported on the other; None where there
                are no two halves. A product of many good steps lies far below 1/2, so this is how it should be read
    auc         chance that a right solution has a higher number than a wrong one, equal ones counting half
    """
    cut = math.log(HALF) if name == "product" else HALF
    first, second = halves(outcomes, how.seed)
    tuned = None
    if first and second:
        threshold = best_cut([aggregate(s.scores, name) for s in first], [bool(s.solved) for s in first])
        shown = math.exp(threshold) if name == "product" else threshold
        tuned = {"threshold": shown, "chosen_on": len(first), **_called(second, name, threshold, how)}
    numbers = [aggregate(s.scores, name) for s in outcomes]
    good, where = [bool(s.solved) for s in outcomes], problem_numbers(outcomes)
    return {"accuracy": _called(outcomes, name, cut, how), "tuned": tuned, "auc": auc(numbers, good, where, how)}


def _called(solutions: Sequence[Solved], name: Aggregate, cut: float, how: Resampling) -> dict[str, Any]:
    right = [float((aggregate(s.scores, name) >= cut) == s.solved) for s in solutions]
    return ratio(right, [1.0] * len(right), problem_numbers(solutions), how, share=True).as_dict()


def best_cut(numbers: Sequence[float], good: Sequence[bool]) -> float:
    """The number from which on to say "right" with the fewest errors, midway between two that occur; of equals the
    middle one."""
    order = np.argsort(numbers, kind="stable")
    x, y = np.asarray(numbers)[order], np.asarray(good, dtype=np.float64)[order]
    errors = np.concatenate([[0.0], np.cumsum(y)]) + (1 - y).sum() - np.concatenate([[0.0], np.cumsum(1 - y)])
    cuts = np.concatenate([[x[0]], (x[1:] + x[:-1]) / 2, [np.nextafter(x[-1], math.inf)]])
    errors[1:-1][x[1:] == x[:-1]] = math.inf  # equal numbers stand on one side
    best = np.flatnonzero(errors == errors.min())
    return float(cuts[best[len(best) // 2]])


def against_outcome(
    solutions: Sequence[Solved], outcome: Sequence[float], how: Resampling | None = None
) -> dict[str, Any] | None:
    """A process reward model, by each aggregation, beside an outcome reward model on the same solutions.

    `outcome` has the outcome model's score of each of them. Kept are problems with two or more solutions that are all
    known to be right or wrong; None without any. With N the solutions that nine tenths of these problems have (others
    are `left_out`):

    judges     for each of outcome, product, min, last, mean: `auc`, and `best_of_n`, the share of problems whose
               highest-scored of n solutions is right, expected over all choices of n of its solutions
    gains      for each aggregation and n, best-of-n minus the outcome model's, resampled together
    random, oracle   what choosing blindly, and knowing, would reach

    Lightman et al., arXiv:2305.20050, figure 3, and Uesato et al., arXiv:2211.14275, compare them so.
    """
    how = how or Resampling()
    if len(outcome) != len(solutions) or not all(map(math.isfinite, outcome)):
        got = f"{len(outcome)} scores for {len(solutions)} solutions"
        raise ValueError(f"outcome: got {got}; expected a finite one for each")
    problems: dict[str, list[int]] = {}
    for i, s in enumerate(solutions):
        problems.setdefault(s.problem, []).append(i)
    usable = [at for at in problems.values() if len(at) > 1 and all(solutions[i].solved is not None for i in at)]
    if not usable:
        return None
    sizes = sorted(map(len, usable))
    most = sizes[len(sizes) // 10]
    kept = [at for at in usable if len(at) >= most]
    flat = [i for at in kept for i in at]
    where, ones = [number for number, at in enumerate(kept) for _ in at], [1.0] * len(kept)
    good = [[bool(solutions[i].solved) for i in at] for at in kept]
    says: dict[str, list[float]] = {"outcome": list(outcome)}
    for name in get_args(Aggregate):
        says[name] = [aggregate(s.scores, name) for s in solutions]
    curves = {
        name: [
            [best_of([x[i] for i in at], g, n) for at, g in zip(kept, good, strict=True)] for n in range(1, most + 1)
        ]
        for name, x in says.items()
    }

    def points(values: Sequence[Sequence[float]], share: bool) -> list[dict[str, Any]]:
        every = range(len(kept))
        return [{"n": n, **ratio(v, ones, every, how, share=share).as_dict()} for n, v in enumerate(values, 1)]

    judges = {
        name: {
            "auc": auc([x[i] for i in flat], [y for g in good for y in g], where, how),
            "best_of_n": points(curves[name], True),
        }
        for name, x in says.items()
    }
    differences = {
        name: [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(curve, curves["outcome"], strict=True)]
        for name, curve in curves.items()
        if name != "outcome"
    }
    return {
        "problems": len(kept),
        "left_out": len(usable) - len(kept),
        "judges": judges,
        "gains": {name: points(values, False) for name, values in differences.items()},
        "random": sum(sum(g) / len(g) for g in good) / len(good),
        "oracle": [sum(any_of(g, n) for g in good) / len(good) for n in range(1, most + 1)],
    }


def findings(report: Mapping[str, Any], against: Mapping[str, Any] | None = None) -> list[tuple[str, str, str]]:
    """Every figure of `process`, and of `against_outcome` where given, as (section, what, value) for a table."""
    out = []
    for key, title in (("first_error", "first mistake"), ("tuned", "first mistake, tuned")):
        if (x := report[key]) is not None:
            at = f"threshold {x['threshold']:.3f}, chosen on {x['chosen_on']:,} others; " if key == "tuned" else ""
            out.append((title, "found, or none where there is none", at + said(x["accuracy"])))
            out.append((title, "found where there is one", said(x["erroneous"])))
            out.append((title, "none called where there is none", said(x["correct"])))
            out.append((title, "harmonic mean of these two (ProcessBench F1)", said(x["f1"])))
    if (x := report["steps"]) is not None:
        names = {"accuracy": "accuracy", "precision": "bad steps, precision", "recall": "bad steps, recall",
                 "f1": "bad steps, F1"}  # fmt: skip
        out += [("steps", text, said(x[key])) for key, text in names.items()]
        out.append(("steps", "expected calibration error", number(x["ece"])))
        out.append(("steps", "Brier score (0.25 knows nothing)", said(x["brier"], ".3f")))
    for name, x in (report["solutions"] or {}).items():
        out.append(("solutions", f"{name}, accuracy at 1/2", said(x["accuracy"])))
        if (tuned := x["tuned"]) is not None:
            at = f"threshold {tuned['threshold']:.3g}, chosen on {tuned['chosen_on']:,} others; "
            out.append(("solutions", f"{name}, accuracy tuned", at + said(tuned)))
        out.append(("solutions", f"{name}, AUC", said(x["auc"], ".3f")))
    if against is not None:
        n = len(against["oracle"])
        for name, x in against["judges"].items():
            out.append(("process and outcome", f"{name}, AUC", said(x["auc"], ".3f")))
            out.append(("process and outcome", f"{name}, best of {n}", said(x["best_of_n"][-1])))
        for name, gains in against["gains"].items():
            out.append(("process and outcome", f"{name} beyond outcome, best of {n}", said(gains[-1], "+.1%")))
        limits = f"{against['random']:.1%} and {against['oracle'][-1]:.1%}"
        out.append(("process and outcome", f"chosen blindly, and knowing, of {n}", limits))
    return out
