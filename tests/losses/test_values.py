"""The loss of a critic and what a policy update says about its ratios, by hand."""

import doctest
import math
from typing import Any

import pytest
import torch

from batches import batch_of
from espalier.losses import policy, values
from espalier.losses.ops import normalise, peaks
from espalier.losses.policy import Clip
from espalier.types import Batch, Outputs
from losses_by_hand import wide


def test_the_examples_are_right() -> None:
    assert doctest.testmod(values).failed == 0


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "x", "slope"),
    [
        (1.0, 0.0, 3.0, 0.0, 2.0, -2.0),  # (1 - 3)^2 / 2, and V - R
        (1.0, 0.0, 3.0, 0.5, 3.125, 0.0),  # far from old towards R: held at 0.5, (0.5 - 3)^2 / 2
        (-1.0, 0.0, 3.0, 0.5, 8.0, -4.0),  # far from old, away from R: it may come back
        (0.25, 0.0, 3.0, 0.5, 3.78125, -2.75),  # near old: nothing is held
        (-1.0, 0.0, -3.0, 0.5, 3.125, 0.0),  # the same downwards
        (1.0, 0.0, -3.0, 0.5, 8.0, 4.0),
        (2.0, 0.0, 1.0, 0.5, 0.5, 1.0),  # beyond R: V itself has the larger error, and comes back
        (1.2, 0.0, 1.0, 0.5, 0.125, 0.0),  # beyond R but nearer to it than 0.5 is: held
        (1.0, 0.9, 3.0, 0.2, 2.0, -2.0),  # the distance is from old
    ],
)
def test_the_loss_of_a_value_by_hand(
    value: float, old: float, target: float, clip: float, x: float, slope: float
) -> None:
    leaf = wide([value]).requires_grad_()
    got = values.squared(leaf, wide([old]), wide([target]), clip)
    (gradient,) = torch.autograd.grad(got.sum(), leaf)
    assert got.item() == pytest.approx(x, abs=1e-14)
    assert gradient.item() == pytest.approx(slope, abs=1e-14)


def judged(said: Any, *, junk: float | None = None, coef: float = 1.0) -> tuple[Outputs, Batch, Any]:
    """Two answers of two and three tokens with the weights 1, 0.5, 0 and 2, 1; at the token of weight 0 stands `junk`.

    Values 1, 2, _, 0, -1 stand before returns 3, 1, _, 4, -1; before the step they were 0, 2, _, 0, -1.
    """
    numbers = {"values": wide([0, 2, 0, 0, -1]), "returns": wide([3, 1, 0, 4, -1])}
    if junk is not None:
        for stream in numbers.values():
            stream[2] = junk
        said = torch.where(torch.arange(5) == 2, junk, said)
    batch = batch_of([2, 3], streams=numbers, weights=wide([1, 0.5, 0, 2, 1]))
    leaf = said.clone().requires_grad_()
    return Outputs(wide([0] * 5), values=leaf), batch, leaf


def test_the_value_terms_are_over_the_weight_of_tokens() -> None:
    """With clip 0.5: (0.5 - 3)^2 / 2, held; 1 / 2, once half; 16 / 2, twice; 0. In all 3.125 + 0.25 + 16, over 4.5."""
    outputs, batch, leaf = judged(wide([1, 2, 0, 0, -1]))
    terms = values.value_terms(outputs, batch, clip=0.5)
    loss, shares = normalise(terms, batch.totals)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx((3.125 + 0.25 + 16) / 4.5)
    assert slope.tolist() == pytest.approx([0, 0.5 / 4.5, 0, -8 / 4.5, 0])
    assert {name: x.item() for name, x in shares.items()} == pytest.approx(
        {"value": 19.375 / 4.5, "value_clipped": 1 / 4.5, "value_error": (4 + 0.5 + 32) / 4.5}
    )
    assert {name: (term.over, term.part, term.coef) for name, term in terms.items()} == {
        "value": ("tokens", "main", 1.0),
        "value_clipped": ("tokens", "main", 0.0),
        "value_error": ("tokens", "main", 0.0),
    }


def test_without_a_clip_nothing_is_held_and_coef_weighs_the_loss_alone() -> None:
    """4 / 2, half of 1 / 2, twice 16 / 2 over 4.5, of which 0.1 counts."""
    outputs, batch, leaf = judged(wide([1, 2, 0, 0, -1]))
    loss, shares = normalise(values.value_terms(outputs, batch, clip=0.0, coef=0.1), batch.totals)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx(0.1 * 18.25 / 4.5)
    assert slope.tolist() == pytest.approx([-0.2 / 4.5, 0.05 / 4.5, 0, -0.8 / 4.5, 0])
    assert shares["value"].item() == pytest.approx(18.25 / 4.5)
    assert shares["value_clipped"].item() == 0


@pytest.mark.parametrize("junk", [1e6, -1e6, math.nan, math.inf])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_tokens_without_weight_change_no_bit(clip: float, junk: float) -> None:
    results = []
    for here in (None, junk):
        outputs, batch, leaf = judged(wide([1, 2, 0, 0, -1]), junk=here)
        loss, shares = normalise(values.value_terms(outputs, batch, clip=clip), batch.totals)
        (slope,) = torch.autograd.grad(loss, leaf)
        results.append((loss.item(), slope.tolist(), {name: x.item() for name, x in shares.items()}))
    assert results[0] == results[1]


def test_a_gradient_of_finite_differences() -> None:
    noise = torch.Generator().manual_seed(0)
    V, old, R = (torch.randn(40, generator=noise, dtype=torch.float64) for _ in range(3))
    leaf = V.clone().requires_grad_()
    values.squared(leaf, old, R, 0.2).sum().backward()  # type: ignore[no-untyped-call]
    size = 1e-6
    slopes = (values.squared(V + size, old, R, 0.2) - values.squared(V - size, old, R, 0.2)) / (2 * size)
    assert leaf.grad is not None
    assert (leaf.grad - slopes).abs().max() < 1e-6
    assert 0 < (leaf.grad == 0).sum() < 40


def test_outputs_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="outputs have no values; expected those of a critic"):
        values.value_terms(Outputs(wide([0, 0])), batch_of([2]), clip=0.2)


# ------------------------------------------------------------------------------------------------- ratios of the policy


def told(new: list[float], old: list[float], A: list[float], weights: list[float]) -> tuple[dict[str, Any], Any, Batch]:
    batch = batch_of([len(new)], streams={"advantages": wide(A), "old_logprobs": wide(old)}, weights=wide(weights))
    leaf = wide(new).requires_grad_()
    return policy.terms(Outputs(leaf), batch, Clip(0.2, 0.2)), leaf, batch


def test_the_terms_of_a_policy_update_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.1 at A = 1, 1, -2 with the weights 1, 2, 1: -1.2, -1 and 2.2 to be divided by 4."""
    logs = [math.log(1.5), math.log(0.5), math.log(1.1)]
    terms, leaf, batch = told(logs, [0, 0, 0], [1, 1, -2], [1, 2, 1])
    loss, shares = normalise(terms, batch.totals)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx((-1.2 - 1 + 2.2) / 4)
    assert slope.tolist() == pytest.approx([0, -2 * 0.5 / 4, 2.2 / 4])
    k3 = [0.5 - logs[0], -0.5 - logs[1], 0.1 - logs[2]]
    assert shares["approx_kl"].item() == pytest.approx((k3[0] + 2 * k3[1] + k3[2]) / 4)
    assert {name: x.item() for name, x in peaks(terms).items()} == pytest.approx(
        {"ratio_max": 1.5, "ratio_inverse_max": 2.0}
    )
    assert terms["ratio_inverse_max"].coef == terms["approx_kl"].coef == 0
    assert not terms["approx_kl"].x.requires_grad


def test_the_approximate_kl_is_that_from_the_old_policy() -> None:
    """Expected under the old policy 0.5, 0.5 it is KL(old || pi) with pi = 0.8, 0.2."""
    old, new = [math.log(0.5)] * 2, [math.log(0.8), math.log(0.2)]
    terms, _, batch = told(new, old, [0, 0], [1, 1])
    kl = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert normalise(terms, batch.totals)[1]["approx_kl"].item() == pytest.approx(kl)


@pytest.mark.parametrize("junk", [1e6, -1e6, math.nan])
def test_a_ratio_without_weight_is_no_largest_one(junk: float) -> None:
    plain = told([0.1, 0.0], [0.0, 0.0], [1, 1], [1, 0])
    full = told([0.1, junk], [0.0, -junk], [1, 1e6], [1, 0])
    results = []
    for terms, leaf, batch in (plain, full):
        loss, shares = normalise(terms, batch.totals)
        (slope,) = torch.autograd.grad(loss, leaf)
        results.append((loss.item(), slope.tolist(), {n: x.item() for n, x in {**shares, **peaks(terms)}.items()}))
    assert results[0] == results[1]
    assert results[0][2]["ratio_inverse_max"] == pytest.approx(math.exp(-0.1))
