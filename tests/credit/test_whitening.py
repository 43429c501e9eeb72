"""Whitening against numbers by hand."""

import doctest
import math
import random
import statistics

import pytest

from espalier.credit import whitening
from espalier.credit.whitening import whiten


def test_the_examples_are_right() -> None:
    assert doctest.testmod(whitening).failed == 0


def test_the_variance_is_the_population_s_over_all_numbers() -> None:
    """0, 0, 0, 4: mean 1, variance 3 (over n - 1 it would be 4); each token counts, not each sample."""
    spread = math.sqrt(3 + 1e-8)
    assert whiten([[0.0, 0.0, 0.0], [4.0]]) == [pytest.approx([-1 / spread] * 3), pytest.approx([3 / spread])]
    kept = whiten([[0.0, 0.0, 0.0], [4.0]], keep_mean=True)
    assert kept == [pytest.approx([1 - 1 / spread] * 3), pytest.approx([1 + 3 / spread])]


def test_scale_and_place_of_the_numbers_do_not_matter() -> None:
    rng = random.Random(0)
    streams = [[rng.gauss(0, 1) for _ in range(n)] for n in (5, 1, 9)]
    white = whiten(streams)
    flat = [x for stream in white for x in stream]
    assert statistics.fmean(flat) == pytest.approx(0, abs=1e-12)
    assert statistics.pstdev(flat) == pytest.approx(1, abs=1e-6)
    moved = whiten([[3 * x - 7 for x in stream] for stream in streams])
    for a, b in zip(white, moved, strict=True):
        assert a == pytest.approx(b, abs=1e-7)
    kept = [x for stream in whiten(streams, keep_mean=True) for x in stream]
    assert statistics.fmean(kept) == pytest.approx(statistics.fmean(x for s in streams for x in s), abs=1e-12)


def test_equal_numbers_are_not_divided() -> None:
    """0.1 * 3 / 3 is not 0.1."""
    assert whiten([[0.1, 0.1], [0.1]]) == [[0, 0], [0]]
    assert whiten([[0.1, 0.1], [0.1]], keep_mean=True) == [[0.1, 0.1], [0.1]]
    assert whiten([[2.0]]) == [[0]]
    assert whiten([]) == []
