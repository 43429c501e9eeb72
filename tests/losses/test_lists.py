"""Plackett-Luce against the sum over permutations, written here from its definition."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import pytest
import torch
from torch import Tensor

from espalier.losses.lists import EXACT_TIE, plackett_luce

torch.manual_seed(0)
NAN = math.nan


def order_probability(scores: Tensor, order: tuple[int, ...]) -> Tensor:
    """prod_k exp(s_k) / sum_{j >= k} exp(s_j), as written."""
    e = scores.exp()
    p = torch.ones((), dtype=scores.dtype)
    for k in range(len(order)):
        p = p * e[order[k]] / e[list(order[k:])].sum()
    return p


def by_permutations(scores: Tensor, labels: list[float]) -> Tensor:
    """-log of the mean probability of all orders in which no label follows a lower one."""
    ranked = [i for i, label in enumerate(labels) if not math.isnan(label)]
    agreeing = [
        order_probability(scores, order)
        for order in permutations(ranked)
        if all(labels[a] >= labels[b] for a, b in pairwise(order))
    ]
    return -torch.stack(agreeing).mean().log()


def one_group(scores: Tensor, labels: list[float]) -> Tensor:
    group = torch.zeros(len(labels), dtype=torch.int64)
    return plackett_luce(scores, torch.tensor(labels, dtype=torch.float64), group)


@pytest.mark.parametrize(
    "labels",
    [
        [1.0, 0.0],
        [0.0, 3.0, 1.0],
        [2.0, 1.0, 1.0, 0.0],
        [1.0, 1.0, 0.0],
        [1.0, 0.0, 0.0],
        [0.5, 0.5],
        [3.0, 3.0, 3.0, 3.0, 1.0, 0.0],
        [1.0, 1.0, 0.0, 0.0, -1.0, -1.0],
        [2.0, NAN, 1.0, NAN, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # a tie of five with nothing below it is exact
        [6.0, 2.0, 5.0, 1.0, 4.0, 3.0],
    ],
)
def test_it_is_the_sum_over_permutations(labels: list[float]) -> None:
    scores = torch.randn(len(labels), dtype=torch.float64, requires_grad=True)
    got, expected = one_group(scores, labels), by_permutations(scores, labels)
    assert got.shape == (1,)
    assert got.item() == pytest.approx(expected.item(), abs=1e-12)
    (got_grad,) = torch.autograd.grad(got.sum(), scores)
    (expected_grad,) = torch.autograd.grad(expected, scores)
    assert (got_grad - expected_grad).abs().max().item() <= 1e-12


def test_three_by_hand() -> None:
    """s = log 3, log 2, log 1 in this order: 3/6 * 2/3 * 1 = 1/3; the other way round 1/6 * 2/5 = 1/15."""
    scores = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).log()
    assert one_group(scores, [2.0, 1.0, 0.0]).item() == pytest.approx(math.log(3))
    assert one_group(scores, [0.0, 1.0, 2.0]).item() == pytest.approx(math.log(15))
    # The best two tied: (3/6 2/3 + 2/6 3/4) / 2 = 7/24
    assert one_group(scores, [1.0, 1.0, 0.0]).item() == pytest.approx(math.log(24 / 7))


def test_two_samples_are_bradley_terry() -> None:
    scores = torch.tensor([0.3, 1.7], dtype=torch.float64)
    assert one_group(scores, [5.0, 2.0]).item() == pytest.approx(math.log1p(math.exp(1.4)))


def test_the_gradient_by_hand() -> None:
    """d x / d s_i = sum over the stages that i takes part in of softmax_i, less 1 (the last stage is certain)."""
    scores = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).log().requires_grad_()
    one_group(scores, [2.0, 1.0, 0.0]).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([3 / 6 - 1, 2 / 6 + 2 / 3 - 1, 1 / 6 + 1 / 3])


def test_groups_do_not_touch_and_may_stand_in_any_order() -> None:
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, NAN, 2.0, 7.0, 0.0], dtype=torch.float64)
    groups = torch.tensor([0, 2, 0, 2, 2, 0, 1, 3])
    scores = torch.randn(8, dtype=torch.float64)
    got = plackett_luce(scores, labels, groups)
    for g in range(4):
        own = groups == g
        assert got[g].item() == pytest.approx(one_group(scores[own], labels[own].tolist()).item(), abs=1e-12)
    assert got[1].item() == got[3].item() == 0.0
    shuffle = torch.randperm(8)
    assert torch.allclose(plackett_luce(scores[shuffle], labels[shuffle], groups[shuffle]), got, atol=1e-12)


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    scores, labels = torch.randn(5, dtype=torch.float64), [2.0, 2.0, 1.0, 0.0, 0.0]
    assert one_group(scores + 700, labels).item() == pytest.approx(one_group(scores, labels).item(), abs=1e-9)


def test_ties_beyond_the_limit_use_pairs() -> None:
    """Five tied above two: 1/5! prod_i (sigmoid(s_i - s_5) sigmoid(s_i - s_6))^(1/2), and the order of the two."""
    scores = torch.randn(7, dtype=torch.float64, requires_grad=True)
    labels = [2.0] * (EXACT_TIE + 1) + [1.0, 0.0]
    sig = torch.sigmoid(scores[:5, None] - scores[None, 5:])
    expected = math.log(120) - sig.log().sum() / 2 - torch.sigmoid(scores[5] - scores[6]).log()
    got = one_group(scores, labels)
    assert got.item() == pytest.approx(expected.item(), abs=1e-12)
    (got_grad,) = torch.autograd.grad(got.sum(), scores)
    (expected_grad,) = torch.autograd.grad(expected, scores)
    assert (got_grad - expected_grad).abs().max().item() <= 1e-12


def test_nothing_ranked_is_zero_with_a_gradient_of_zero() -> None:
    scores = torch.randn(3, requires_grad=True)
    x = plackett_luce(scores, torch.tensor([NAN, 1.0, NAN]), torch.tensor([0, 1, 1]))
    x.sum().backward()
    assert x.tolist() == [0.0, 0.0]
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0, 0.0, 0.0]
    assert plackett_luce(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_far_apart_scores_stay_finite() -> None:
    scores = torch.tensor([-300.0, 300.0, 0.0, 5.0], requires_grad=True)
    group = torch.zeros(4, dtype=torch.int64)
    x = plackett_luce(scores, torch.tensor([2.0, 1.0, 1.0, 0.0]), group)
    x.sum().backward()
    assert math.isfinite(x.item()) and x.item() > 600
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_the_optimum_has_the_enumerated_strengths() -> None:
    """Orders drawn from strengths w, all six weighted with their probabilities: the gradient is 0 at s = log w."""
    scores = torch.tensor([5.0, 3.0, 2.0], dtype=torch.float64).log().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for order in permutations(range(3)):
        labels = [0.0] * 3
        for place, i in enumerate(order):
            labels[i] = float(-place)
        loss = loss + order_probability(scores.detach(), order) * one_group(scores, labels).sum()
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.abs().max().item() <= 1e-12
