"""What answers to tasks say about a model and a reward before anybody trains."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from espalier.workbench.bootstrap import Resampling, mean, numbered


@dataclass(frozen=True, slots=True)
class Answer:
    """One graded answer. `task` identifies its task; `score` is None if it could not be graded, and `error` says why;
    `invalid` says why it does not qualify (empty if it does)."""

    task: tuple[Any, ...]
    score: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    invalid: str = ""
    error: str = ""
    stop: str = "stop"
    length: int = 0


def answer_of(record: Mapping[str, Any]) -> Answer:
    """The answer of a line of samples.jsonl. Raises KeyError for a line that lacks something."""
    task = (record["task"]["source"], record["task"]["line"], record["task"]["row"])
    names = ("score", "parts", "invalid", "error", "stop", "length")
    return Answer(task, **{name: record[name] for name in names})


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that at least one of k answers is right, without bias from n >= k of which `right` are:
    1 - C(n - right, k) / C(n, k) (Chen et al., arXiv:2107.03374).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def best_of_k(scores: Sequence[float], k: int) -> float:
    """The expected highest of k scores drawn without replacement: sum over the i-th smallest x_i of
    C(i - 1, k - 1) / C(n, k) x_i. Of scores that are 0 or 1 it is `pass_at_k`.

    >>> best_of_k([0.0, 1.0, 4.0], 2)  # pairs 0 1, 0 4, 1 4
    3.0
    """
    ordered = sorted(scores)
    total = sum(math.comb(i, k - 1) * x for i, x in enumerate(ordered))
    return total / math.comb(len(scores), k)


def sizes(most: int) -> list[int]:
    """The k that are reported: powers of two up to `most`, and `most` itself.

    >>> sizes(12)
    [1, 2, 4, 8, 12]
    """
    return sorted({2**i for i in range(most.bit_length())} | {most} - {0})


def summary(answers: Iterable[Answer], right: float | None, resampling: Resampling) -> dict[str, Any]:
    """Figures of answers, each with its interval over tasks (see `bootstrap.Estimate`).

    right: the score from which an answer counts as right; None leaves out what needs it.

    tasks, answers, errors, invalid: counts, `causes` and `reasons` by their texts.
    reward: mean score of graded answers. rewards: the same of each reward by name. best_of: expected best of k, by k.
    pass: pass@k by k, over tasks with at least k graded answers.
    dead: share of tasks whose scores are all equal, of those with two graded answers or more; always, never: share of
        tasks all of whose answers are right, or none.
    length: mean, median, p90 and max, in tokens. stops: answers by the reason they ended.
    """
    everything = list(answers)
    groups: dict[tuple[Any, ...], list[Answer]] = {}
    for answer in everything:
        groups.setdefault(answer.task, []).append(answer)
    scores = [[a.score for a in group if a.score is not None] for group in groups.values()]
    scores = [group for group in scores if group]
    graded = [a for a in everything if a.score is not None]
    figures: dict[str, Any] = {
        "tasks": len(groups),
        "answers": len(everything),
        "errors": len(everything) - len(graded),
        "causes": dict(Counter(a.error for a in everything if a.error).most_common()),
        "invalid": sum(bool(a.invalid) for a in graded),
        "reasons": dict(Counter(a.invalid for a in graded if a.invalid).most_common()),
        "reward": _over_tasks(graded, [a.score for a in graded], resampling),
        "rewards": _rewards(graded, resampling),
        "best_of": _by_k(scores, lambda group, k: best_of_k(group, k), resampling),
        "dead": _share([len(set(group)) == 1 for group in scores if len(group) > 1], resampling),
        "length": _lengths([a.length for a in everything]),
        "stops": dict(Counter(a.stop for a in everything).most_common()),
    }
    if right is not None:
        hits = [[float(x >= right) for x in group] for group in scores]
        figures["right"] = right
        figures["pass"] = _by_k(hits, lambda group, k: pass_at_k(len(group), round(sum(group)), k), resampling, True)
        figures["always"] = _share([all(group) for group in hits], resampling)
        figures["never"] = _share([not any(group) for group in hits], resampling)
    return figures


def _over_tasks(answers: Sequence[Answer], values: Sequence[Any], resampling: Resampling) -> dict[str, Any]:
    return mean(values, numbered(a.task for a in answers), resampling)


def _rewards(graded: Sequence[Answer], resampling: Resampling) -> dict[str, Any]:
    estimates = {}
    for name in sorted({name for a in graded for name in a.parts}):
        having = [a for a in graded if name in a.parts]
        estimates[name] = _over_tasks(having, [a.parts[name] for a in having], resampling)
    return estimates


def _by_k(groups: Sequence[list[float]], figure: Any, resampling: Resampling, share: bool = False) -> dict[str, Any]:
    """A figure of each group's scores for every k, as the mean over the groups that have so many."""
    estimates = {}
    for k in sizes(max(map(len, groups), default=0)):
        values = [figure(group, k) for group in groups if len(group) >= k]
        estimates[str(k)] = mean(values, range(len(values)), resampling, share=share)
    return estimates


def _share(flags: Sequence[bool], resampling: Resampling) -> dict[str, Any]:
    return mean([float(flag) for flag in flags], range(len(flags)), resampling, share=True)


def _lengths(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    ordered = sorted(lengths)
    return {
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        # The smallest length that at least 90 % of the answers do not exceed.
        "p90": ordered[math.ceil(0.9 * len(ordered)) - 1],
        "max": ordered[-1],
    }
