"""Losses of scores: numbers and gradients by hand, and the optima that enumerated frequencies ask for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from espalier.losses.scores import Ties, bradley_terry, centering, pointwise, shares, standard, with_ties

WIDE = torch.float64
GAPS = [-3.0, -0.4, 0.0, 0.7, 5.0]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def grad(f: Callable[[Tensor], Tensor], at: list[float]) -> list[float]:
    x = torch.tensor(at, dtype=WIDE, requires_grad=True)
    f(x).sum().backward()
    assert x.grad is not None
    return x.grad.tolist()


# ------------------------------------------------------------------------------------------------------- Bradley-Terry


@pytest.mark.parametrize(("margin", "e"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (2.0, 0.3)])
def test_bradley_terry_and_its_gradient(margin: float, e: float) -> None:
    got = bradley_terry(torch.tensor(GAPS, dtype=WIDE), margin, e).tolist()
    expected = [-(1 - e) * math.log(sigma(d - margin)) - e * math.log(sigma(margin - d)) for d in GAPS]
    assert got == pytest.approx(expected, abs=1e-12)
    slopes = grad(lambda x: bradley_terry(x, margin, e), GAPS)
    assert slopes == pytest.approx([sigma(d - margin) - (1 - e) for d in GAPS], abs=1e-12)


def test_bradley_terry_far_out_is_linear() -> None:
    got = bradley_terry(torch.tensor([-1000.0, 1000.0]))
    assert got.tolist() == [1000.0, 0.0]


def test_the_optimum_is_the_logit_of_the_frequency() -> None:
    """Five answers, every frequency enumerated from strengths: Newton's method ends at the gaps logit(f)."""
    strengths = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.25], dtype=WIDE)
    f = strengths[:, None] / (strengths[:, None] + strengths[None, :])

    def loss(s: Tensor) -> Tensor:
        s = torch.cat([torch.zeros(1, dtype=WIDE), s])  # the origin is free: hold the first at 0
        gap = s[:, None] - s[None, :]
        return (f * bradley_terry(gap.reshape(-1)).view(5, 5)).sum()

    s = torch.zeros(4, dtype=WIDE)
    for _ in range(20):
        hessian = torch.autograd.functional.hessian(loss, s)
        (slope,) = torch.autograd.grad(loss(s.requires_grad_()), s)
        s = s.detach() - torch.linalg.solve(hessian, slope)
    for i in range(1, 5):
        assert -s[i - 1].item() == pytest.approx(logit(f[0, i].item()), abs=1e-10)


@pytest.mark.parametrize("frequency", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("e", [0.0, 0.1])
def test_smoothing_moves_the_optimum_towards_zero(frequency: float, e: float) -> None:
    """With a share e of labels taken to be wrong, f becomes f (1 - e) + (1 - f) e."""

    def both(d: Tensor) -> Tensor:
        return frequency * bradley_terry(d, 0.0, e) + (1 - frequency) * bradley_terry(-d, 0.0, e)

    assert grad(both, [logit(frequency * (1 - e) + (1 - frequency) * e)]) == pytest.approx([0.0], abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------- ties


def win_and_tie(kind: Ties, d: float, share: float) -> tuple[float, float]:
    """As the papers write them, with strengths e^d and 1."""
    p, q = math.exp(d), 1.0
    if kind == "rao_kupper":
        theta = (1 + share) / (1 - share)
        return p / (p + theta * q), (theta**2 - 1) * p * q / ((p + theta * q) * (theta * p + q))
    nu = 2 * share / (1 - share)
    whole = p + q + nu * math.sqrt(p * q)
    return p / whole, nu * math.sqrt(p * q) / whole


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
@pytest.mark.parametrize("share", [0.05, 1 / 3, 0.8])
def test_ties_are_the_papers_probabilities(kind: Ties, share: float) -> None:
    for d in GAPS:
        gap = torch.tensor([d, -d, d], dtype=WIDE)
        win, loss, tie = with_ties(gap, torch.tensor([False, False, True]), kind, share).neg().exp().tolist()
        expected_win, expected_tie = win_and_tie(kind, d, share)
        assert win == pytest.approx(expected_win, abs=1e-12)
        assert tie == pytest.approx(expected_tie, abs=1e-12)
        assert loss == pytest.approx(win_and_tie(kind, -d, share)[0], abs=1e-12)
        assert win + loss + tie == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
def test_equal_scores_tie_with_the_given_share(kind: Ties) -> None:
    tie = with_ties(torch.zeros(1, dtype=WIDE), torch.tensor([True]), kind, 0.4).neg().exp()
    assert tie.item() == pytest.approx(0.4)


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
def test_the_gradient_of_ties_is_zero_at_the_enumerated_gap(kind: Ties) -> None:
    """Frequencies of win, loss and tie enumerated at gap 0.9 have their optimum there, and nowhere near it."""
    win, tie = win_and_tie(kind, 0.9, 0.25)
    frequencies = torch.tensor([win, 1 - win - tie, tie], dtype=WIDE)

    def expected(d: Tensor) -> Tensor:
        gap = torch.stack([d[0], -d[0], d[0]])
        return (frequencies * with_ties(gap, torch.tensor([False, False, True]), kind, 0.25)).sum()

    assert grad(expected, [0.9]) == pytest.approx([0.0], abs=1e-12)
    assert grad(expected, [0.8])[0] < -1e-3 and grad(expected, [1.0])[0] > 1e-3


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
def test_gradients_of_ties_by_hand(kind: Ties) -> None:
    share = 0.25
    theta = (1 + share) / (1 - share)
    tied = torch.tensor([False, True])
    for d in GAPS:
        got = grad(lambda x: with_ties(x, tied, kind, share), [d, d])
        win = win_and_tie(kind, d, share)[0]
        loss = win_and_tie(kind, -d, share)[0]
        if kind == "rao_kupper":
            eta = math.log(theta)
            expected = [sigma(d - eta) - 1, sigma(d - eta) - sigma(-d - eta)]
        else:  # d log Z / d d = (P(win) - P(loss)) / 2
            expected = [(win - loss) / 2 - 0.5, (win - loss) / 2]
        assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
def test_few_ties_are_bradley_terry(kind: Ties) -> None:
    gap = torch.tensor(GAPS, dtype=WIDE)
    got = with_ties(gap, torch.zeros(5, dtype=torch.bool), kind, 1e-9)
    assert torch.allclose(got, bradley_terry(gap), atol=1e-8)


# --------------------------------------------------------------------------------------------- grades, origin and sums


def test_centering_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0], [-3.0, 1.0]], dtype=WIDE, requires_grad=True)
    x = centering(scores)
    x.sum().backward()
    assert x.tolist() == [9.0, 4.0]
    assert scores.grad is not None
    assert scores.grad.tolist() == [[6.0, 6.0], [-4.0, -4.0]]


def test_grades_land_between_minus_one_and_one() -> None:
    assert standard(torch.tensor([1.0, 3.0, 5.0]), 1.0, 5.0).tolist() == [-1.0, 0.0, 1.0]
    assert math.isnan(standard(torch.tensor([math.nan]), 0.0, 1.0).item())


def test_pointwise_averages_over_known_dimensions() -> None:
    nan = math.nan
    scores = torch.tensor([[1.0, 5.0, 0.0], [2.0, 2.0, 2.0], [7.0, 7.0, 7.0]], dtype=WIDE, requires_grad=True)
    grades = torch.tensor([[3.0, nan, 1.0], [1.0, 0.0, 2.0], [nan, nan, nan]], dtype=WIDE)
    x = pointwise(scores, grades)
    x.sum().backward()
    assert x.tolist() == pytest.approx([(4 + 1) / 2, (1 + 4 + 0) / 3, 0.0])
    assert scores.grad is not None
    expected = [[-4 / 2, 0, -2 / 2], [2 / 3, 4 / 3, 0], [0, 0, 0]]
    assert torch.allclose(scores.grad, torch.tensor(expected, dtype=WIDE))


@pytest.mark.parametrize("k", range(4, 10))
def test_shares_of_k_answers(k: int) -> None:
    """K answers have K (K - 1) / 2 pairs, each weighing 2 / (K (K - 1)); a group beside them weighs 1, too."""
    pairs = k * (k - 1) // 2
    got = shares(torch.tensor([0] * pairs + [1]), WIDE)
    assert got.tolist() == pytest.approx([2 / (k * (k - 1))] * pairs + [1.0], abs=1e-12)
