"""Levels and comparisons of a Ranking, by numbers that can be checked by eye, and what is drawn by seed."""

from __future__ import annotations

import doctest
from collections import Counter
from itertools import pairwise
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.config.sections import PreferenceConfig
from espalier.data.render import rankings
from espalier.data.render.rankings import (
    Comparisons,
    JudgedBy,
    comparisons,
    flipped_labels,
    levels,
    weighted_total,
)
from espalier.errors import RowError
from espalier.types import Message, Ranking, Response

PLAIN = PreferenceConfig()


def made(*responses: Response, dimensions: tuple[str, ...] = ()) -> Ranking:
    return Ranking((Message("user", "?"),), responses, dimensions)


def said(
    text: str = "a", *, rank: int | None = None, scores: tuple[float | None, ...] = (), good: bool | None = None
) -> Response:
    return Response(Message("assistant", text), rank=rank, scores=scores, good=good)


def strict(compared: Comparisons) -> int:
    """How many strict preferences there are."""
    return sum(map(len, compared.beats))


def test_worked_examples() -> None:
    failed, tried = doctest.testmod(rankings)
    assert failed == 0 and tried >= 10


def test_judged_by_has_the_words_of_the_config() -> None:
    assert get_type_hints(PreferenceConfig)["judged_by"] == JudgedBy


# ------------------------------------------------------------------------------------------------------------- levels


def test_the_best_rank_has_the_highest_level() -> None:
    assert levels(made(said(rank=2), said(rank=0), said(), said(rank=0)), {}) == [-2.0, 0.0, None, 0.0]


def test_one_kind_of_judgement_decides() -> None:
    both = made(said(rank=0, scores=(1.0,), good=False), said(rank=1, scores=(9.0,), good=True))
    assert levels(both, {}) == [0.0, -1.0]
    assert levels(made(said(scores=(1.0,), good=True), said(scores=(9.0,), good=False)), {}) == [1.0, 9.0]
    assert levels(made(said(good=True), said(good=False), said()), {}) == [1.0, 0.0, None]
    assert levels(made(said(), said()), {}) == [None, None]


def test_one_kind_of_judgement_decides_where_it_is_named() -> None:
    both = made(said(rank=0, scores=(1.0,), good=False), said(rank=1, scores=(9.0,), good=True), said(good=True))
    assert levels(both, {}) == levels(both, {}, "ranks") == [0.0, -1.0, None]
    assert levels(both, {}, "scores") == [1.0, 9.0, None] and levels(both, {}, "labels") == [0.0, 1.0, 1.0]
    assert levels(made(said(good=True), said(good=False)), {}, "ranks") == [None, None]


def test_a_misspelt_weight_is_refused_with_the_nearest_name() -> None:
    two = made(said(scores=(4.0, 1.0)), said(scores=(2.0, 5.0)), dimensions=("helpful", "brief"))
    with pytest.raises(RowError, match=r"got helpfull; expected one of helpful, brief\. Did you mean helpful\?"):
        levels(two, {"helpfull": 1.0, "brief": 1.0})
    with pytest.raises(RowError, match=r"got kind; .*Name the row's own dimensions"):
        levels(two, {"kind": 1.0})


def test_dimensions_are_weighed_by_name() -> None:
    two = made(said(scores=(4.0, 1.0)), said(scores=(2.0, 5.0)), said(scores=(3.0, None)), dimensions=("help", "harm"))
    assert levels(two, {}) == [2.5, 3.5, None]
    assert levels(two, {"help": 1.0}) == [4.0, 2.0, 3.0]  # the dimension that is not named does not count
    assert levels(two, {"help": 3.0, "harm": -1.0}) == [(12 - 1) / 4, (6 - 5) / 4, None]
    assert levels(two, {"help": 0.0}) == [None, None, None]


def test_a_total_weighs_scores_and_lacks_none_that_weighs() -> None:
    assert weighted_total([4.0, 1.0], [3.0, -1.0]) == (12 - 1) / 4
    assert weighted_total([4.0, None], [1.0, 0.0]) == 4.0 and weighted_total([4.0, None], [1.0, 1.0]) is None
    assert weighted_total([4.0, 1.0], [0.0, 0.0]) is None and weighted_total([], []) is None
    assert weighted_total([0.1, 0.2, 0.3], [1.0] * 3) == weighted_total([0.3, 0.2, 0.1], [1.0] * 3)
    with pytest.raises(ValueError, match=r"longer|shorter"):
        weighted_total([1.0, 2.0], [1.0])


def test_a_nameless_score_is_the_total_whatever_is_weighed() -> None:
    assert levels(made(said(scores=(7.5,)), said(scores=(None,)), said()), {"help": 2.0}) == [7.5, None, None]


def test_weights_are_read_from_the_config() -> None:
    assert PreferenceConfig(score_weights=("a=b=2", "c=-0.5")).weights == {"a=b": 2.0, "c": -0.5}


# -------------------------------------------------------------------------------------------------------- comparisons


def test_the_higher_level_beats_the_lower_and_equals_tie() -> None:
    found = comparisons([1.0, 3.0, 2.0, 3.0], PLAIN, key=7, seed=0)
    assert found.beats == [[], [0, 2], [0], [0, 2]] and found.ties == [[], [3], [], []]
    assert found.dropped == {} and strict(found) == 5


def test_gaps_below_the_margin_are_left_out_and_ties_are_kept() -> None:
    found = comparisons([8.0, 7.5, 8.0, 6.0], PreferenceConfig(min_gap=1.0), key=0, seed=0)
    assert found.beats == [[3], [3], [3], []]  # 7.5 beats 6 by 1.5; 8 against 7.5 is no comparison
    assert found.ties == [[2], [], [], []] and found.dropped == {"gap below min_gap": 2}
    assert comparisons([2.0, 1.0], PreferenceConfig(min_gap=1.0), key=0, seed=0).beats == [[1], []]


def test_the_cap_counts_ties_and_draws_by_seed_and_key() -> None:
    capped = PreferenceConfig(max_pairs=3)
    chosen: Counter[tuple[int, int]] = Counter()
    for key in range(400):
        found = comparisons([3.0, 2.0, 2.0, 1.0], capped, key=key, seed=0)
        pairs = [(i, j) for i, lower in enumerate(found.beats) for j in lower]
        pairs += [(i, j) for i, equal in enumerate(found.ties) for j in equal]
        assert len(pairs) == 3 and found.dropped == {"over max_pairs": 3}
        assert found == comparisons([3.0, 2.0, 2.0, 1.0], capped, key=key, seed=0)
        chosen.update(pairs)
    assert set(chosen) == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (1, 2)}
    assert all(150 < count < 250 for count in chosen.values())  # each in half of the draws: 200, sd 10
    other = [comparisons([3.0, 2.0, 2.0, 1.0], capped, key=key, seed=1) for key in range(20)]
    assert other != [comparisons([3.0, 2.0, 2.0, 1.0], capped, key=key, seed=0) for key in range(20)]


def test_a_cap_that_is_not_reached_changes_nothing() -> None:
    free = comparisons([3.0, 1.0, 2.0], PLAIN, key=1, seed=5)
    assert comparisons([3.0, 1.0, 2.0], PreferenceConfig(max_pairs=3), key=1, seed=5) == free


def test_a_share_of_preferences_is_flipped() -> None:
    flipped = [comparisons([1.0, 0.0], PreferenceConfig(flip=0.25), key=key, seed=3).beats for key in range(2000)]
    count = flipped.count([[], [0]])
    assert flipped.count([[1], []]) == 2000 - count and 440 < count < 560  # 500, sd 19
    ties = comparisons([1.0, 1.0], PreferenceConfig(flip=0.9), key=0, seed=0)
    assert ties.ties == [[1], []] and strict(ties) == 0


def test_labels_are_flipped_each_on_its_own() -> None:
    unpaired = [True] * 1000 + [None, False]
    flipped = flipped_labels(unpaired, PreferenceConfig(flip=0.25), key=0, seed=0)
    assert 190 < flipped[:1000].count(False) < 310 and flipped[1000] is None  # 250, sd 14
    assert flipped_labels(unpaired, PLAIN, key=0, seed=0) == unpaired


def test_draws_for_pairs_and_labels_are_independent() -> None:
    """A pair and a label with the same numbers are not flipped together."""
    share = PreferenceConfig(flip=0.5)
    compared = [comparisons([1.0, 0.0], share, key=key, seed=0) for key in range(1000)]
    pair = [bool(strict(each)) and not each.beats[0] for each in compared]
    one = [flipped_labels([True], share, key=key, seed=0) == [False] for key in range(1000)]
    assert 440 < sum(a == b for a, b in zip(pair, one, strict=True)) < 560


@given(
    st.lists(st.none() | st.integers(0, 4).map(float), max_size=7),
    st.integers(0, 6),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 1 << 62),
)
def test_every_pair_is_compared_once_or_counted(
    levels: list[float | None], cap: int, gap: float, flip: float, key: int
) -> None:
    found = comparisons(levels, PreferenceConfig(min_gap=gap, max_pairs=cap, flip=flip), key=key, seed=1)
    pairs = [(min(i, j), max(i, j)) for i, others in enumerate(found.beats) for j in others]
    pairs += [(i, j) for i, others in enumerate(found.ties) for j in others]
    assert len(set(pairs)) == len(pairs) and (not cap or len(pairs) <= cap)
    judged = [level for level in levels if level is not None]
    assert len(pairs) + sum(n for reason, n in found.dropped.items() if reason != "not judged") == (
        len(judged) * (len(judged) - 1) // 2
    )
    assert found.dropped.get("not judged", 0) == len(levels) - len(judged)
    for others in (*found.beats, *found.ties):
        assert all(a < b for a, b in pairwise(others)) and all(levels[j] is not None for j in others)


@pytest.mark.parametrize("numbers", [(0,), (0, 0), (1, 2, 3), ((1 << 62), 7, 9, 1, 2)])
def test_uniform_is_below_one_and_depends_on_every_number(numbers: tuple[int, ...]) -> None:
    x = rankings._uniform(*numbers)
    assert 0 <= x < 1
    for i in range(len(numbers)):
        assert rankings._uniform(*numbers[:i], numbers[i] + 1, *numbers[i + 1 :]) != x
