"""The strength of the KL from step to step, by hand."""

import doctest

import pytest

from espalier.credit import kl_control
from espalier.credit.kl_control import adapted, banded, of_answers, streak


def test_the_examples_are_right() -> None:
    assert doctest.testmod(kl_control).failed == 0


def test_the_kl_of_answers_is_a_mean_of_sums_and_that_of_tokens_a_mean_of_all() -> None:
    """Sums 3 and -1; 2 over four tokens."""
    assert of_answers([[1.0, 2.0, 0.0], [-1.0]]) == (1, 0.5)
    assert of_answers([[], [4.0]]) == (2, 4)
    assert of_answers([]) == (0, 0)


@pytest.mark.parametrize(
    ("kl", "answers", "after"),
    [
        (6.0, 50, 0.1),  # at the target
        (6.6, 50, 0.1 * (1 + 0.1 * 0.5)),  # a tenth above it, over half the horizon
        (5.4, 50, 0.1 * (1 - 0.1 * 0.5)),
        (60.0, 50, 0.1 * (1 + 0.2 * 0.5)),  # counts as a fifth above it
        (0.0, 50, 0.1 * (1 - 0.2 * 0.5)),
        (-7.0, 50, 0.1 * (1 - 0.2 * 0.5)),
        (0.0, 500, 0.0),  # would be 0.1 (1 - 0.2 x 5) and below 0 from there on
        (0.0, 5000, 0.0),
    ],
)
def test_the_adapted_strength_by_hand(kl: float, answers: int, after: float) -> None:
    assert adapted(0.1, kl, 6.0, answers, 100) == pytest.approx(after)


def test_the_adapted_strength_of_ziegler_s_code() -> None:
    """`AdaptiveKLController.update` as published: proportional_error = clip(current / target - 1, -0.2, 0.2), mult =
    1 + proportional_error * n_steps / horizon."""
    value = 0.15
    ours = value
    for kl, answers in ((9.0, 512), (3.0, 512), (6.3, 100), (5.9, 7)):
        proportional = min(max(kl / 6.0 - 1, -0.2), 0.2)
        value *= 1 + proportional * answers / 10000
        ours = adapted(ours, kl, 6.0, answers, 10_000)
    assert ours == pytest.approx(value, rel=1e-15)


def test_the_band_changes_nothing_inside_and_at_its_ends() -> None:
    assert [banded(0.1, kl, 0.01, 0.05) for kl in (0.01, 0.03, 0.05)] == [0.1, 0.1, 0.1]
    assert banded(0.1, 0.050001, 0.01, 0.05) == pytest.approx(0.15)
    assert banded(0.1, 0.009999, 0.01, 0.05) == pytest.approx(0.1 / 1.5)
    assert banded(banded(0.1, 1.0, 0.01, 0.05), -1.0, 0.01, 0.05) == pytest.approx(0.1)


def test_a_streak_counts_this_step_and_begins_anew() -> None:
    count = 0.0
    counts = []
    for outside in (True, True, False, True):
        count = streak(count, outside)
        counts.append(count)
    assert counts == [1, 2, 0, 1]
