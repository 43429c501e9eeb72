"""What a Ranking says about its responses: one level for each, and who beats whom."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from espalier.errors import RowError, nearest
from espalier.ties import closer, settled
from espalier.types import Ranking, Response

if TYPE_CHECKING:
    from espalier.config.sections import PreferenceConfig

JudgedBy = Literal["auto", "ranks", "scores", "labels"]
"""Which judgement of a ranking decides, as `PreferenceConfig.judged_by` names it."""
UNJUDGED = "not judged"
TOO_CLOSE = "gap below min_gap"
_GOLDEN, _WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1
_KEEP, _FLIP, _LABEL = 1, 2, 3  # what a number is drawn for


@dataclass(frozen=True, slots=True)
class Comparisons:
    """`beats[i]`: the places of the responses that response i is strictly preferred to; `ties[i]`: of those after it
    that it equals. Both ascend. `dropped`: what is left out, counted by reason."""

    beats: list[list[int]]
    ties: list[list[int]]
    dropped: dict[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------- levels


def levels(ranking: Ranking, weights: Mapping[str, float], by: JudgedBy = "auto") -> list[float | None]:
    """How good each response is among its siblings, higher being better; None if it is not judged.

    One kind of judgement decides for the whole ranking: the one that `by` names or, for auto, ranks if any response has
    one (level -rank), else scores, else good or bad (1 or 0). Scores of several dimensions become their
    `weighted_total`, with all weights 1 if `weights` is empty, and 0 for a dimension that it does not name. A single
    nameless dimension is the total. Totals that differ by rounding alone are equal: see `ties.settled`.

    Raises RowError if `weights` names a dimension that the ranking lacks: it would silently weigh 0.

    >>> from espalier.types import Message
    >>> def scored(*scores): return Response(Message("assistant", "a"), scores=scores)
    >>> both = Ranking((), (scored(4.0, 2.0), scored(3.0, 1.0), scored(None, 5.0)), ("helpful", "brief"))
    >>> levels(both, {}), levels(both, {"helpful": 3.0, "brief": -1.0})
    ([3.0, 2.0, None], [2.5, 2.0, None])
    >>> levels(both, {"brief": 1.0})
    [2.0, 1.0, 5.0]
    """
    deciding = decides(ranking, by)
    if deciding == "scores":
        if ranking.dimensions:
            _check_names(ranking.dimensions, weights)
        return settled([_total(response, ranking.dimensions, weights) for response in ranking.responses])
    return [level_of(response, deciding) for response in ranking.responses]


def decides(ranking: Ranking, by: JudgedBy = "auto") -> Literal["ranks", "scores", "labels"]:
    """Which judgement decides for a ranking: the one that `by` names or, for auto, the first that a response has."""
    if by != "auto":
        return by
    if any(response.rank is not None for response in ranking.responses):
        return "ranks"
    if has_scores(ranking):
        return "scores"
    return "labels"


def has_scores(ranking: Ranking) -> bool:
    """Whether any response has a score."""
    return any(score is not None for response in ranking.responses for score in response.scores)


def level_of(response: Response, deciding: Literal["ranks", "labels"]) -> float | None:
    """The level of a response by its own rank or label."""
    if deciding == "ranks":
        return None if response.rank is None else float(-response.rank)
    return None if response.good is None else float(response.good)


def _check_names(dimensions: tuple[str, ...], weights: Mapping[str, float]) -> None:
    for name in weights:
        if name not in dimensions:
            raise RowError(
                "no score of that name",
                field="score_weights",
                got=name,
                expected=f"one of {', '.join(dimensions)}",
                fix=nearest(name, dimensions) or "Name the row's own dimensions in score_weights",
            )


def _total(response: Response, dimensions: tuple[str, ...], weights: Mapping[str, float]) -> float | None:
    """The total of a response's scores; None if it has none."""
    if not response.scores:
        return None
    if not dimensions:
        (total,) = response.scores
        return total
    if not weights:
        return weighted_total(response.scores, [1.0] * len(dimensions))
    return weighted_total(response.scores, [weights.get(name, 0.0) for name in dimensions])


def weighted_total(scores: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """sum_d w_d s_d / sum_d |w_d|, the mean of scores s_d weighed by w_d; one weight per score.

    None if all weights are 0, or a score with w_d != 0 is missing: the mean of the others would be one of other things.

    >>> weighted_total([4.0, 2.0], [3.0, -1.0]), weighted_total([4.0, None], [1.0, 0.0])
    (2.5, 4.0)
    >>> weighted_total([4.0, None], [1.0, 1.0])
    """
    products: list[float] = []
    complete = True
    for weight, score in zip(weights, scores, strict=True):
        if weight and score is None:
            complete = False
        elif weight and score is not None:
            products.append(weight * score)
    if not products or not complete:
        return None
    # fsum is exact up to one rounding, so that the order of the dimensions changes nothing.
    return math.fsum(products) / math.fsum(map(abs, weights))


def comparisons(levels: Sequence[float | None], preference: PreferenceConfig, key: int, seed: int) -> Comparisons:
    """Every two responses with levels: a strict preference if these differ, a tie if they are equal (`ties.settled`).

    Left out and counted in `dropped`: responses without a level ("not judged", one for each response), strict
    preferences whose gap is below `preference.min_gap` ("gap below min_gap"), and what exceeds `preference.max_pairs`
    comparisons, ties included ("over max_pairs"). A share `preference.flip` of the strict preferences kept is flipped,
    counted in `dropped` under no reason. What is drawn follows from (`seed`, `key`, places) alone; `key` tells prompts
    apart.

    >>> from espalier.config.sections import PreferenceConfig
    >>> compared = comparisons([2.0, 1.0, 2.0, None], PreferenceConfig(), key=0, seed=0)
    >>> compared.beats, compared.ties, compared.dropped
    ([[1], [], [1], []], [[2], [], [], []], {'not judged': 1})
    >>> comparisons([9.0, 8.5, 7.0], PreferenceConfig(min_gap=1.0), key=0, seed=0)
    Comparisons(beats=[[2], [2], []], ties=[[], [], []], dropped={'gap below min_gap': 1})
    >>> comparisons([1.0, 0.0], PreferenceConfig(flip=0.999999), key=0, seed=0).beats
    [[], [0]]
    """
    result = Comparisons([[] for _ in levels], [[] for _ in levels])
    unjudged = sum(level is None for level in levels)
    if unjudged:
        result.dropped[UNJUDGED] = unjudged
    pairs: list[tuple[int, int, float]] = []  # places i < j, and by how much i is better
    for i, j, level, other in _both(settled(levels)):
        if level != other and closer(level, other, preference.min_gap):
            result.dropped[TOO_CLOSE] = result.dropped.get(TOO_CLOSE, 0) + 1
        else:
            pairs.append((i, j, level - other))
    limit = preference.max_pairs or len(pairs)
    if limit < len(pairs):
        result.dropped["over max_pairs"] = len(pairs) - limit
        # A number for each pair, the smallest kept: whether a pair is kept does not hang on how
        # many are drawn before.
        pairs.sort(key=lambda pair: _uniform(seed, key, _KEEP, pair[0], pair[1]))
        pairs = sorted(pairs[:limit])
    for i, j, gap in pairs:
        if not gap:
            result.ties[i].append(j)
            continue
        flipped = _uniform(seed, key, _FLIP, i, j) < preference.flip
        better, worse = (i, j) if (gap > 0) != flipped else (j, i)
        result.beats[better].append(worse)
    for beaten in result.beats:
        beaten.sort()
    return result


def _both(levels: Sequence[float | None]) -> Iterator[tuple[int, int, float, float]]:
    """Places and levels of every two responses that have levels."""
    for i, level in enumerate(levels):
        for j in range(i + 1, len(levels)):
            other = levels[j]
            if level is not None and other is not None:
                yield i, j, level, other


def flipped_labels(
    labels: Sequence[bool | None], preference: PreferenceConfig, key: int, seed: int
) -> list[bool | None]:
    """Labels, good or bad, of which a share `preference.flip` is flipped; None, not judged, stays None.

    >>> from espalier.config.sections import PreferenceConfig
    >>> flipped_labels([True, False, None], PreferenceConfig(), key=0, seed=0)
    [True, False, None]
    >>> flipped_labels([True, False, None], PreferenceConfig(flip=0.999999), key=0, seed=0)
    [False, True, None]
    """
    result: list[bool | None] = []
    for place, good in enumerate(labels):
        flipped = _uniform(seed, key, _LABEL, place) < preference.flip
        result.append(None if good is None else good != flipped)
    return result


def _uniform(*numbers: int) -> float:
    """A number in [0, 1) with 53 random bits that follow from `numbers` alone.

    Each in turn is joined to the state, which SplitMix64's finaliser then mixes (Steele et al. 2014).
    """
    state = 0
    for number in numbers:
        state = (state ^ number) + _GOLDEN & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return (state >> 11) * 2.0**-53
