"""Intervals: prompts are resampled, by a seed."""

from __future__ import annotations

import pytest

from espalier.workbench import bootstrap
from held_out import HOW


def test_interval_of_a_share_is_near_the_normal_one() -> None:
    """80 of 100 prompts with one pair each: 0.8 +- 1.96 * 0.04."""
    found = bootstrap.ratio([1] * 80 + [0] * 20, [1] * 100, range(100), bootstrap.Resampling(resamples=4000))
    assert found.low == pytest.approx(0.8 - 0.0784, abs=0.015)
    assert found.high == pytest.approx(0.8 + 0.0784, abs=0.015)


def test_prompts_are_resampled_not_pairs() -> None:
    """Ten pairs of one prompt, all alike, say as much as one: the interval is that of the prompts."""
    few = bootstrap.ratio([1, 1, 1, 0] * 5, [1] * 20, range(20), HOW)
    many = bootstrap.ratio([1, 1, 1, 0] * 50, [1] * 200, [k % 20 for k in range(200)], HOW)
    assert (many.low, many.high) == (few.low, few.high)
    alone = bootstrap.ratio([1, 1, 1, 0] * 50, [1] * 200, range(200), HOW)
    assert alone.low is not None and few.low is not None and alone.low > few.low + 0.05


def test_an_interval_is_a_function_of_the_seed() -> None:
    args = ([1, 0, 1, 1, 0], [1] * 5, range(5))
    assert bootstrap.ratio(*args, HOW) == bootstrap.ratio(*args, HOW)


def test_all_right_is_no_certainty() -> None:
    found = bootstrap.ratio([1] * 10, [1] * 10, range(10), HOW, share=True)
    assert (found.low, found.high) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    none = bootstrap.ratio([0] * 10, [1] * 10, range(10), HOW, share=True)
    assert (none.low, none.high) == (0.0, pytest.approx(0.3085, abs=1e-4))


def test_one_prompt_has_no_interval_and_none_no_value() -> None:
    assert bootstrap.ratio([1, 0], [1, 1], [4, 4], HOW).as_dict() == {
        "value": 0.5, "low": None, "high": None, "n": 2, "prompts": 1,
    }  # fmt: skip
    assert bootstrap.ratio([], [], [], HOW).value is None
