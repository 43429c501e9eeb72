"""What a Ranking says about its responses: one level for each, and who beats whom."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from espalier.errors import RowError, nearest
from espalier.types import Ranking, Response

if TYPE_CHECKING:
    from espalier.config.sections import PreferenceConfig

Kind = Literal["auto", "ranks", "scores", "labels"]
ROUNDING = 1e-9  # levels no further apart than this times max(1, |level|) are equal
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

    @property
    def strict(self) -> int:
        """How many strict preferences are kept."""
        return sum(map(len, self.beats))


def levels(ranking: Ranking, weights: Mapping[str, float], by: Kind = "auto") -> list[float | None]:
    """How good each response is among its siblings, higher being better; None where nobody says.

    One kind of judgement decides for the whole ranking: the one that `by` names or, of auto, ranks where any response
    has one (level -rank), else scores, else good or bad (1 or 0). Scores of several dimensions become
    sum_d w_d s_d / sum_d |w_d|, with all w_d = 1 where `weights` is empty and 0 for a dimension that it does not name;
    a response that lacks the score of a dimension with w_d != 0 has no level, because its mean would be one of other
    things. A single nameless dimension is the total. Totals that differ by rounding alone are equal: see `settled`.

    Raises RowError where `weights` names a dimension that the ranking has not: it would weigh 0 without a word.

    >>> from espalier.types import Message
    >>> def scored(*scores): return Response(Message("assistant", "a"), scores=scores)
    >>> both = Ranking((), (scored(4.0, 2.0), scored(3.0, 1.0), scored(None, 5.0)), ("helpful", "brief"))
    >>> levels(both, {}), levels(both, {"helpful": 3.0, "brief": -1.0})
    ([3.0, 2.0, None], [2.5, 2.0, None])
    >>> levels(both, {"brief": 1.0})
    [2.0, 1.0, 5.0]
    """
    responses, by = ranking.responses, decides(ranking, by)
    if by == "ranks":
        return [None if response.rank is None else float(-response.rank) for response in responses]
    if by == "scores":
        if ranking.dimensions:
            _check_names(ranking.dimensions, weights)
        return settled([_total(response, ranking.dimensions, weights) for response in responses])
    return [None if response.good is None else float(response.good) for response in responses]


def decides(ranking: Ranking, by: Kind = "auto") -> Literal["ranks", "scores", "labels"]:
    """Which judgement decides for a ranking: the one that `by` names or, of auto, the first that a response has."""
    if by != "auto":
        return by
    if any(response.rank is not None for response in ranking.responses):
        return "ranks"
    scored = any(score is not None for response in ranking.responses for score in response.scores)
    return "scores" if scored else "labels"


def settled(levels: Sequence[float | None]) -> list[float | None]:
    """Levels, of which those that differ by rounding alone are made equal: each takes the least level that is at most
    `ROUNDING` max(1, |that level|) below it, so that whether two are equal is the same question everywhere.

    >>> settled([0.1 + 0.2, 0.3, None, 0.31])
    [0.3, 0.3, None, 0.31]
    """
    first: dict[float, float] = {}
    least = -math.inf
    for level in sorted({level for level in levels if level is not None}):
        if level - least > ROUNDING * max(1.0, abs(least)) or not first:
            least = level
        first[level] = least
    return [None if level is None else first[level] for level in levels]


def closer(a: float, b: float, gap: float) -> bool:
    """Whether two levels are less than `gap` apart, by more than rounding: 0.3 and 0.2 are 0.1 apart."""
    return gap - abs(a - b) > ROUNDING * max(1.0, abs(a), abs(b))


def _check_names(dimensions: tuple[str, ...], weights: Mapping[str, float]) -> None:
    for name in weights:
        if name not in dimensions:
            raise RowError(
                "no score of that name", field="score_weights", got=name, expected=f"one of {', '.join(dimensions)}",
                fix=nearest(name, dimensions) or "Name the row's own dimensions in score_weights",
            )  # fmt: skip


def _total(response: Response, dimensions: tuple[str, ...], weights: Mapping[str, float]) -> float | None:
    if not response.scores:
        return None
    if not dimensions:
        (total,) = response.scores
        return total
    shares = [weights.get(name, 0.0) if weights else 1.0 for name in dimensions]
    weighed = [(weight, score) for weight, score in zip(shares, response.scores, strict=True) if weight]
    known = [weight * score for weight, score in weighed if score is not None]
    if not weighed or len(known) < len(weighed):
        return None
    return math.fsum(known) / math.fsum(map(abs, shares))  # fsum: the order of the dimensions changes nothing


def score_weights(preference: PreferenceConfig) -> dict[str, float]:
    """`preference.score_weights` as a mapping: `("helpful=2", "brief=-1")` is `{"helpful": 2.0, "brief": -1.0}`."""
    pairs = (given.rpartition("=") for given in preference.score_weights)
    return {name: float(weight) for name, _, weight in pairs}


def comparisons(
    levels: Sequence[float | None],
    preference: PreferenceConfig,
    key: int,
    seed: int,
    contents: Sequence[Hashable] | None = None,
) -> Comparisons:
    """Every two responses with levels: a strict preference where these differ, a tie where they are equal (`settled`).

    Left out and counted in `dropped`: responses without a level ("not judged", one for each response), two of equal
    `contents` ("identical responses"; nothing tells them apart, whatever their levels), strict preferences whose gap is
    below `preference.min_gap` ("gap below min_gap"), and what exceeds `preference.max_pairs` comparisons, ties included
    ("over max_pairs"). A share `preference.flip` of the strict preferences kept is turned around, counted in `dropped`
    under no reason. What is drawn follows from (`seed`, `key`, places) alone; `key` tells prompts apart.

    >>> from espalier.config.sections import PreferenceConfig
    >>> found = comparisons([2.0, 1.0, 2.0, None], PreferenceConfig(), key=0, seed=0)
    >>> found.beats, found.ties, found.dropped
    ([[1], [], [1], []], [[2], [], [], []], {'not judged': 1})
    >>> comparisons([9.0, 8.5, 7.0], PreferenceConfig(min_gap=1.0), key=0, seed=0)
    Comparisons(beats=[[2], [2], []], ties=[[], [], []], dropped={'gap below min_gap': 1})
    >>> comparisons([1.0, 0.0], PreferenceConfig(), key=0, seed=0, contents=["yes", "yes"]).dropped
    {'identical responses': 1}
    >>> comparisons([1.0, 0.0], PreferenceConfig(flip=0.999999), key=0, seed=0).beats
    [[], [0]]
    """
    dropped: dict[str, int] = {}

    def drop(reason: str, count: int = 1) -> None:
        if count:
            dropped[reason] = dropped.get(reason, 0) + count

    drop("not judged", sum(level is None for level in levels))
    found: list[tuple[int, int, float]] = []  # places i < j and how much better i is
    for i, j, level, other in _both(settled(levels)):
        if contents is not None and contents[i] == contents[j]:
            drop("identical responses")
        elif level != other and closer(level, other, preference.min_gap):
            drop(TOO_CLOSE)
        else:
            found.append((i, j, level - other))
    limit = preference.max_pairs or len(found)
    if limit < len(found):
        drop("over max_pairs", len(found) - limit)
        found = sorted(sorted(found, key=lambda pair: _uniform(seed, key, _KEEP, *pair[:2]))[:limit])
    beats: list[list[int]] = [[] for _ in levels]
    ties: list[list[int]] = [[] for _ in levels]
    for i, j, gap in found:
        if not gap:
            ties[i].append(j)
        elif (gap > 0) != (_uniform(seed, key, _FLIP, i, j) < preference.flip):
            beats[i].append(j)
        else:
            beats[j].append(i)
    return Comparisons([sorted(beaten) for beaten in beats], ties, dropped)


def _both(levels: Sequence[float | None]) -> Iterator[tuple[int, int, float, float]]:
    """Places and levels of every two responses that have levels."""
    for i, level in enumerate(levels):
        for j in range(i + 1, len(levels)):
            other = levels[j]
            if level is not None and other is not None:
                yield i, j, level, other


def labels(ranking: Ranking, preference: PreferenceConfig, key: int, seed: int) -> list[bool | None]:
    """Good or bad for each response, None where nobody says, with a share `preference.flip` turned around.

    >>> from espalier.config.sections import PreferenceConfig
    >>> from espalier.types import Message
    >>> said = Ranking((), tuple(Response(Message("assistant", "a"), good=g) for g in (True, False, None)))
    >>> labels(said, PreferenceConfig(), key=0, seed=0), labels(said, PreferenceConfig(flip=0.999999), key=0, seed=0)
    ([True, False, None], [False, True, None])
    """
    return [
        None if response.good is None else response.good != (_uniform(seed, key, _LABEL, i) < preference.flip)
        for i, response in enumerate(ranking.responses)
    ]


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
