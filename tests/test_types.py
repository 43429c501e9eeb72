"""Which levels are equal, by numbers that can be checked by eye, and that every room takes the same ones for a tie."""

from __future__ import annotations

import doctest
import math
from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from espalier import types
from espalier.config.sections import PreferenceConfig
from espalier.data.render.rankings import comparisons
from espalier.losses.lists import plackett_luce
from espalier.ties import ROUNDING, closer, settled


def test_worked_examples() -> None:
    failed, tried = doctest.testmod(types)
    assert failed == 0 and tried >= 2


def test_a_tie_reaches_as_far_as_rounding_from_its_least_level() -> None:
    step = 0.75 * ROUNDING
    assert settled([1.0, 1.0 + step, 1.0 + 2 * step]) == [1.0, 1.0, 1.0 + 2 * step]
    assert settled([1000.0, 1000.0 * (1 + step), 1000.0 * (1 + 2 * step)])[:2] == [1000.0, 1000.0]
    assert settled([0.0, step, -step]) == [-step, step, -step] and settled([None, 2.0]) == [None, 2.0]
    assert settled([]) == []


def test_gaps_are_compared_up_to_rounding() -> None:
    assert not closer(0.3, 0.2, 0.1) and closer(0.3, 0.2, 0.1 + 1e-6) and not closer(1e9, 1e9 + 1, 1.0)


LEVELS = st.lists(st.sampled_from([0.3, 0.1 + 0.2, 0.3 + 1e-10, 0.3 + 2e-9, 0.5, 0.5 + 4e-10]), min_size=2, max_size=4)


@given(LEVELS)
def test_data_and_losses_take_the_same_levels_for_a_tie(levels: list[float]) -> None:
    """A group whose levels are all one tie costs log K!, and all its comparisons are ties."""
    whole = len(set(settled(levels))) == 1
    compared = comparisons(levels, PreferenceConfig(), key=0, seed=0)
    assert (sum(map(len, compared.ties)) == len(list(combinations(levels, 2)))) == whole
    scores_S = torch.arange(len(levels), dtype=torch.float64)
    labels_S, group_S = torch.tensor(levels, dtype=torch.float64), torch.zeros(len(levels), dtype=torch.int64)
    (x,) = plackett_luce(scores_S, labels_S, group_S).tolist()
    assert math.isclose(x, math.lgamma(len(levels) + 1), rel_tol=1e-9) == whole
