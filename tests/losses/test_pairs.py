"""Losses over pairs: numbers by hand, gradients by formulas that no autograd has seen, and what leaves them alone."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from espalier.losses import pairs
from espalier.losses.ops import by_prefix, by_sample

LN2 = math.log(2)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------- sums by hand


def test_sums_belong_to_their_samples() -> None:
    assert by_sample(t(1, 2, 4, 8), torch.tensor([0, 2, 2, 0]), 4).tolist() == [9, 0, 6, 0]
    assert by_sample(t(), torch.tensor([], dtype=torch.long), 2).tolist() == [0, 0]


def test_prefixes_begin_where_their_sample_does() -> None:
    x, lengths, rows = t(1, 2, 4, 8, 16, 32), torch.tensor([2.0, 0.0, 3.0, 1.0]), torch.tensor([2, 0, 3, 2, 1])
    assert by_prefix(x, lengths, rows, torch.tensor([2, 1, 1, 0, 0])).tolist() == [4 + 8, 1, 32, 0, 0]


def test_sums_weigh_what_lies_beyond_the_shorter_answer() -> None:
    rows, lengths = torch.tensor([0, 0, 1, 2, 2, 2]), t(2, 1, 3)
    x = t(1, 2, 4, 8, 16, 32).requires_grad_()
    wins = torch.tensor([[0, 1], [2, 0], [2, 1]])
    assert pairs.sums(x, rows, lengths, wins).tolist() == [[3, 4], [56, 3], [56, 4]]
    got = pairs.sums(x, rows, lengths, wins, ld_alpha=0.25)
    # sample 2 is cut at 2 tokens against sample 0, at 1 against sample 1
    assert got.tolist() == [[1 + 0.25 * 2, 4], [8 + 16 + 0.25 * 32, 3], [8 + 0.25 * (16 + 32), 4]]
    assert pairs.sums(x, rows, lengths, wins, ld_alpha=0.0).tolist() == [[1, 4], [24, 3], [8, 4]]
    got[1, 0].backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0, 1, 1, 0.25]


# ------------------------------------------------------------------------------------------------------ losses by hand


@pytest.mark.parametrize(
    ("name", "margin_zero", "example", "settings"),
    [
        # beta 0.5, scores (2, -4) of 4 and 2 tokens: margin 3, mean scores (0.5, -2)
        ("sigmoid", LN2, math.log(1 + math.exp(-3)), {}),
        ("sigmoid", LN2, 0.9 * math.log(1 + math.exp(-3)) + 0.1 * math.log(1 + math.exp(3)), {"smoothing": 0.1}),
        ("sigmoid_norm", LN2, math.log(1 + math.exp(-1.25)), {}),
        ("robust", LN2, (0.8 * math.log(1 + math.exp(-3)) - 0.2 * math.log(1 + math.exp(3))) / 0.6, {"smoothing": 0.2}),
        ("ipo", 1.0, (6 - 1) ** 2, {}),
        ("ipo", 1.0, (2.5 - 1) ** 2, {"ipo_average": True}),
        ("hinge", 1.0, 0.0, {}),
        ("apo_zero", 1.0, 1 - sigma(1) + sigma(-2), {}),
        ("apo_down", 1.0, sigma(1) + 1 - sigma(3), {}),
    ],
)
def test_losses_by_hand(name: str, margin_zero: float, example: float, settings: dict[str, float]) -> None:
    lengths = t(4, 2)[None].expand(2, 2)
    got = pairs.loss(name, torch.stack([t(0, 0), t(2, -4)]), lengths, 0.5, **settings)
    assert got.tolist() == pytest.approx([margin_zero, example], rel=1e-14)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="plackett_luce"):
        pairs.loss("plackett_luce", t(0, 0)[None], t(1, 1)[None], 0.1)


def test_hinge_bends_at_margin_one() -> None:
    assert pairs.hinge(t(-1, 0.5, 1, 2)).tolist() == [2, 0.5, 0, 0]


def test_odds_ratio_by_hand() -> None:
    means = torch.stack([t(0.5, 0.2), t(0.25, 0.8), t(0.3, 0.3)]).log()
    odds = [1 / 0.25, (1 / 3) / 4, 1]  # 1 : 1 against 1 : 4, and so on
    assert pairs.odds_ratio(means).tolist() == pytest.approx([-math.log(r / (1 + r)) for r in odds], rel=1e-14)


def test_log_odds_are_exact_at_both_ends() -> None:
    means = t(-50.0, -1.0, -LN2, -1e-3, -1e-12, 0.0).requires_grad_()
    got = pairs.log_odds(means)
    want = [-50.0, -math.log(math.e - 1), 0.0, -1e-3 - math.log(-math.expm1(-1e-3)), -math.log(1e-12)]
    assert got[:5].tolist() == pytest.approx(want, rel=1e-11, abs=1e-15)
    got.sum().backward()
    assert means.grad is not None
    assert means.grad[:5].tolist() == pytest.approx([1 / -math.expm1(x) for x in means[:5].tolist()], rel=1e-12)
    assert torch.isfinite(got).all() and torch.isfinite(means.grad).all()
    single = torch.tensor([-100.0, -1e-30, 0.0], requires_grad=True)
    pairs.odds_ratio(torch.stack([single, single.flip(0)], 1)).sum().backward()
    assert single.grad is not None and torch.isfinite(single.grad).all()


def test_divergences_by_hand() -> None:
    u = t(0.25, 1.0, 4.0)
    x = u.log()
    assert pairs.divergence(x, "reverse_kl") is x
    js = [math.log(2 * v / (1 + v)) for v in u.tolist()]
    assert pairs.divergence(x, "js").tolist() == pytest.approx(js, abs=1e-15)
    assert pairs.divergence(x, "alpha", 0.5).tolist() == pytest.approx([2 * (1 - 2), 0, 2 * (1 - 0.5)], abs=1e-14)
    assert pairs.divergence(x, "alpha", 1.0).tolist() == pytest.approx([1 - 4, 0, 1 - 0.25], abs=1e-14)
    assert pairs.divergence(x, "alpha", 1e-9).tolist() == pytest.approx(x.tolist(), rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("ratio", [-1e4, -200.0, 200.0])
def test_no_divergence_overflows(ratio: float) -> None:
    for kind in ("js", "alpha"):
        x = torch.tensor([[0.0, ratio], [ratio, 0.0]], requires_grad=True)
        lost = pairs.loss("sigmoid", pairs.divergence(x, kind, 1.0), torch.ones(2, 2), 0.1)
        lost.sum().backward()
        assert torch.isfinite(lost).all()
        assert x.grad is not None and torch.isfinite(x.grad).all()


# ---------------------------------------------------------------------------------------- gradients, without autograd

BETA, E = 0.7, 0.15
Gradient = Callable[[float, float, int, int], tuple[float, float]]  # scores and lengths of w and l -> derivatives


def of_margin(slope: Callable[[float], float]) -> Gradient:
    """Of a loss of the margin m = BETA (w - l), from d loss / d m."""

    def gradient(w: float, l: float, _w: int, _l: int) -> tuple[float, float]:
        g = BETA * slope(BETA * (w - l))
        return g, -g

    return gradient


def of_means(slope: Callable[[float], float]) -> Gradient:
    """Of a loss of the difference of means, from its derivative."""

    def gradient(w: float, l: float, n_w: int, n_l: int) -> tuple[float, float]:
        g = slope(w / n_w - l / n_l)
        return g / n_w, -g / n_l

    return gradient


FORMULAS: list[tuple[str, dict[str, float], Gradient]] = [
    ("sigmoid", {}, of_margin(lambda m: -sigma(-m))),
    ("sigmoid", {"smoothing": E}, of_margin(lambda m: sigma(m) - (1 - E))),
    ("robust", {"smoothing": E}, of_margin(lambda m: sigma(m) - (1 - E) / (1 - 2 * E))),
    ("hinge", {}, of_margin(lambda m: -1.0 if m < 1 else 0.0)),
    ("sigmoid_norm", {}, of_means(lambda d: -BETA * sigma(-BETA * d))),
    ("ipo", {"ipo_average": True}, of_means(lambda d: 2 * (d - 1 / (2 * BETA)))),
    ("ipo", {}, lambda w, l, _w, _l: (2 * (w - l) - 1 / BETA, 1 / BETA - 2 * (w - l))),
    (
        "apo_zero",
        {},
        lambda w, l, _w, _l: (
            -BETA * sigma(BETA * w) * sigma(-BETA * w),
            BETA * sigma(BETA * l) * sigma(-BETA * l),
        ),
    ),
    (
        "apo_down",
        {},
        lambda w, l, _w, _l: (
            BETA * sigma(BETA * w) * sigma(-BETA * w) - BETA * sigma(BETA * (w - l)) * sigma(BETA * (l - w)),
            BETA * sigma(BETA * (w - l)) * sigma(BETA * (l - w)),
        ),
    ),
]


def examples(seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    """Scores of a pair's sides and their lengths."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, 2, generator=random, dtype=torch.float64) * 3
    return scores, torch.randint(1, 9, (count, 2), generator=random).double()


@pytest.mark.parametrize(("name", "settings", "formula"), FORMULAS, ids=[f"{n}-{s}" for n, s, _ in FORMULAS])
def test_gradients_follow_their_formulas(name: str, settings: dict[str, float], formula: Gradient) -> None:
    scores, lengths = examples(1)
    scores.requires_grad_()
    pairs.loss(name, scores, lengths, BETA, **settings).sum().backward()
    assert scores.grad is not None
    each = zip(scores.tolist(), lengths.long().tolist(), strict=True)
    want = [formula(w, l, n_w, n_l) for (w, l), (n_w, n_l) in each]
    assert (scores.grad - torch.tensor(want, dtype=torch.float64)).abs().max() < 1e-12
    assert scores.grad.abs().max() > 1e-2


def test_gradient_of_the_odds_ratio_follows_its_formula() -> None:
    """d log odds / d log p = 1 / (1 - p)."""
    means = -examples(2)[0].abs()
    means.requires_grad_()
    pairs.odds_ratio(means).sum().backward()
    assert means.grad is not None
    for (w, l), got in zip(means.tolist(), means.grad.tolist(), strict=True):
        p_w, p_l = math.exp(w), math.exp(l)
        wrong = 1 / (1 + (p_w / (1 - p_w)) / (p_l / (1 - p_l)))
        assert got == pytest.approx([-wrong / (1 - p_w), wrong / (1 - p_l)], rel=1e-9, abs=1e-12)


def test_gradients_of_divergences_follow_their_formulas() -> None:
    x = examples(3)[0][:, 0].clone().requires_grad_()
    formulas: Sequence[tuple[str, float, Callable[[float], float]]] = (
        ("js", 0.5, lambda r: sigma(-r)),
        ("alpha", 0.3, lambda r: math.exp(-0.3 * r)),
        ("alpha", 1.0, lambda r: math.exp(-r)),
    )
    for kind, alpha, formula in formulas:
        (got,) = torch.autograd.grad(pairs.divergence(x, kind, alpha).sum(), x)  # type: ignore[arg-type]
        assert got.tolist() == pytest.approx([formula(r) for r in x.tolist()], rel=1e-12)


# ------------------------------------------------------------------------------------------------------- what must hold


def test_robust_undoes_the_flips_it_is_told_of() -> None:
    """Over labels of which a share e is flipped, its mean is the DPO loss of the clean ones."""
    margin = examples(4)[0][:, 0]
    mean = (1 - E) * pairs.robust(margin, E) + E * pairs.robust(-margin, E)
    assert (mean - pairs.sigmoid(margin)).abs().max() < 1e-12


def test_conservative_dpo_rests_where_the_policy_is_as_sure_as_the_labels() -> None:
    margin = t(math.log((1 - E) / E)).requires_grad_()
    pairs.sigmoid(margin, E).sum().backward()
    assert margin.grad is not None
    assert abs(margin.grad.item()) < 1e-15


def test_losses_of_differences_ignore_what_both_sides_share() -> None:
    scores, lengths = examples(5)
    for name, settings, _ in FORMULAS:
        if name in ("sigmoid", "robust", "hinge") or (name == "ipo" and not settings):
            got = pairs.loss(name, scores + 3.5, lengths, BETA, **settings)
            assert (got - pairs.loss(name, scores, lengths, BETA, **settings)).abs().max() < 1e-12, name
    same = lengths[:, :1].expand(-1, 2)
    for name, average in (("sigmoid_norm", False), ("ipo", True)):
        moved = pairs.loss(name, scores + 2 * same, same, BETA, ipo_average=average)
        assert (moved - pairs.loss(name, scores, same, BETA, ipo_average=average)).abs().max() < 1e-12, name
