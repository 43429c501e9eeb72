"""Losses of steps: cross-entropy and the aggregates by hand."""

from __future__ import annotations

import math

import pytest
import torch

from espalier.losses.steps import aggregate, cross_entropy, right_side
from espalier.types import Aggregate

NAN = math.nan


LN3 = math.log(3)


def test_cross_entropy_by_hand() -> None:
    """A score of ln 3 says 3/4: ln 4/3 where good, ln 4 where bad, the mean of both where neutral."""
    scores = torch.tensor([LN3, LN3, LN3, LN3], requires_grad=True)
    grades = torch.tensor([1.0, 0.0, 0.5, NAN])
    x = cross_entropy(scores, grades)
    assert x.tolist() == pytest.approx([math.log(4 / 3), math.log(4), math.log(16 / 3) / 2, 0.0], abs=1e-6)
    x.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.25, 0.75, 0.25, 0.0], abs=1e-6)  # sigma(s) - y
    weighted = cross_entropy(scores, grades, bad_weight=3.0)
    assert weighted.tolist() == pytest.approx(
        [math.log(4 / 3), 3 * math.log(4), (math.log(4 / 3) + 3 * math.log(4)) / 2, 0.0], abs=1e-6
    )


def test_what_stands_at_an_ungraded_read_reaches_neither_loss_nor_gradient() -> None:
    scores = torch.tensor([math.inf, 0.0], requires_grad=True)
    x = cross_entropy(scores, torch.tensor([NAN, 1.0]))
    x.sum().backward()
    assert x.tolist() == pytest.approx([0.0, math.log(2)])
    assert scores.grad is not None and scores.grad.tolist() == [0.0, -0.5]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("how", "first", "second"), [("product", 0.36, 0.3), ("min", 0.5, 0.3), ("last", 0.8, 0.3), ("mean", 2.2 / 3, 0.3)]
)
def test_aggregates_by_hand(how: Aggregate, first: float, second: float) -> None:
    """Steps of 0.9, 0.5, 0.8, a solution without steps, and one of a single step of 0.3."""
    scores = torch.tensor([logit(p) for p in (0.9, 0.5, 0.8, 0.3)])
    made = aggregate(scores, torch.tensor([3, 0, 1]), how).tolist()
    assert made[0] == pytest.approx(first, abs=1e-6) and made[2] == pytest.approx(second, abs=1e-6)
    assert math.isnan(made[1])


def test_a_product_of_many_steps_does_not_vanish_early() -> None:
    """Ten steps whose chance is about e-4 each: about e-40, and exact to five digits."""
    scores = torch.full((10,), -4.0)
    exact = (1 / (1 + math.exp(4))) ** 10
    assert aggregate(scores, torch.tensor([10]), "product").item() == pytest.approx(exact, rel=1e-5)


def test_right_side_counts_half_what_has_no_answer() -> None:
    scores, grades = [2.0, 2.0, -1.0, -1.0, 0.0, 3.0, 3.0], [1.0, 0.0, 0.0, 1.0, 1.0, 0.5, NAN]
    assert right_side(torch.tensor(scores), torch.tensor(grades)).tolist() == [1.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.5]
