"""Sources in turn: every prefix holds every share."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data.interleave import interleave, weights_of


def test_interleave_by_hand() -> None:
    assert interleave([1]).tolist() == [0]
    assert interleave([1, 1]).tolist() == [0, 1]
    assert interleave([2, 1]).tolist() == [0, 1, 0]
    assert interleave([5, 3, 2]).tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 1, 0]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=8))
def test_every_prefix_holds_every_share(weights: list[int]) -> None:
    total, order = sum(weights), interleave(weights)
    n = np.arange(1, total + 1)
    for i, w in enumerate(weights):
        off = np.abs(np.cumsum(order == i) - n * w / total).max()
        assert off <= 1 - 1 / (2 * len(weights) - 2) + 1e-9


def test_weights_are_exact_up_to_a_millionth() -> None:
    assert weights_of([Fraction(1)]) == [1]
    assert weights_of([Fraction(1, 3), Fraction(1, 4), Fraction(5, 12)]) == [4, 3, 5]
    odd = [Fraction(1, 999_983), Fraction(1, 999_979), 1 - Fraction(1, 999_983) - Fraction(1, 999_979)]
    assert weights_of(odd) == [1, 1, 999_998]
