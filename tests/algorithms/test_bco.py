"""BCO: the moving shift by hand, losses on packed batches, and a classifier's optimum."""

from __future__ import annotations

import math

import pytest
import torch

from espalier.algorithms.bco import BCO
from espalier.algorithms.traits import Algorithm
from espalier.errors import ConfigError
from espalier.forest.pack import pack, totals
from espalier.losses.ops import normalise
from espalier.losses.unpaired import bco
from espalier.types import Outputs, Sample
from samples import Groups, sample

WIDE = torch.float64


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def step(ratios: list[tuple[float, float]]) -> Groups:
    """A group for each (log-ratio, label), two trained tokens each."""
    groups = []
    for number, (ratio, label) in enumerate(ratios):
        s = sample([1, 2, 3 + number], [7, 4], group=number, label=label)
        s.streams["ref_logprobs"] = [0.0, 0.0, 0.0, -1.0, -3.0]
        s.streams["old_logprobs"] = [0.0, 0.0, 0.0, -1.0 + ratio, -3.0]
        groups.append([s])
    return groups


# --------------------------------------------------------------------------------------------------------------- shift


def test_the_shift_moves_as_documented() -> None:
    algorithm = BCO(beta=0.5, delta_decay=0.75)
    first = algorithm.credit(step([(4.0, 1), (2.0, 1), (-2.0, 0)]), {})
    assert first == pytest.approx({"reward_good": 1.5, "reward_bad": -1.0, "delta": 0.25})
    second = algorithm.credit(step([(6.0, 1), (2.0, 0)]), first)  # rewards 3 and 1
    assert second == pytest.approx(
        {"reward_good": 0.75 * 1.5 + 0.25 * 3, "reward_bad": 0.75 * -1.0 + 0.25 * 1, "delta": (1.875 - 0.5) / 2}
    )
    only_bad = algorithm.credit(step([(2.0, 0)]), second)
    assert only_bad == pytest.approx(
        {"reward_good": 1.875, "reward_bad": 0.75 * -0.5 + 0.25, "delta": (1.875 - 0.125) / 2}
    )
    assert first["reward_good"] == pytest.approx(1.5)  # the state that came in is not changed


def test_a_side_not_seen_yet_counts_as_zero() -> None:
    assert BCO(beta=1.0).credit(step([(3.0, 1), (1.0, 1)]), {}) == pytest.approx({"reward_good": 2.0, "delta": 1.0})
    assert BCO().credit([], {}) == {"delta": 0.0}


def test_without_decay_the_shift_is_the_steps_own() -> None:
    state = {"reward_good": 5.0, "reward_bad": 5.0, "delta": 5.0}
    said = BCO(beta=1.0, delta_decay=0).credit(step([(3.0, 1), (-1.0, 0)]), state)
    assert said["delta"] == pytest.approx(1.0)


def test_it_needs_both_streams_and_labels() -> None:
    groups = step([(1.0, 1)])
    del groups[0][0].streams["old_logprobs"]
    with pytest.raises(ValueError, match="has no old_logprobs; fill"):
        BCO().credit(groups, {})
    with pytest.raises(ValueError, match=r"the label 0\.5"):
        BCO().credit(step([(1.0, 0.5)]), {})


# ---------------------------------------------------------------------------------------------------------------- loss


def test_numbers_and_gradients_by_hand() -> None:
    ratios, labels, delta = [3.0, -2.0, 5.0], [1, 0, 0], 0.25
    groups = step(list(zip(ratios, labels, strict=True)))
    batch = pack(groups, totals(groups), state={"delta": delta})
    logprobs = batch.streams["old_logprobs"].to(WIDE).requires_grad_()
    loss, shares = normalise(BCO(beta=0.2).loss(Outputs(logprobs), batch), batch.totals)
    loss.backward()
    lead = [0.2 * r - delta for r in ratios]
    x = [-math.log(sigma(lead[0])), -math.log(sigma(-lead[1])), -math.log(sigma(-lead[2]))]
    assert loss.item() == pytest.approx(sum(x) / 3)
    slopes = [0.2 * (sigma(a) - good) / 3 for a, good in zip(lead, labels, strict=True)]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([slope for slope in slopes for _ in range(2)], abs=1e-8)
    assert shares["good"].item() == pytest.approx(1 / 3)
    assert shares["accuracy"].item() == pytest.approx(2 / 3)  # the last one stands on the wrong side of the shift
    assert shares["rewards_good"].item() == pytest.approx(lead[0] / 3)
    assert shares["rewards_bad"].item() == pytest.approx((lead[1] + lead[2]) / 3)
    assert shares["imbalance"].item() == pytest.approx(-1 / 3)
    assert shares["delta"].item() == pytest.approx(delta)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("ratio", [-30.0, -1.0, 0.0, 0.4, 25.0])
@pytest.mark.parametrize("delta", [0.0, -1.5])
def test_gradients_in_double(good: bool, ratio: float, delta: float) -> None:
    r = torch.tensor([ratio], dtype=WIDE, requires_grad=True)
    x = bco(r, torch.tensor([good]), delta, beta=0.3)
    x.sum().backward()
    lead = 0.3 * ratio - delta
    assert x.item() == pytest.approx(-math.log(sigma(lead if good else -lead)), abs=1e-12)
    assert r.grad is not None
    assert r.grad.item() == pytest.approx(0.3 * (sigma(lead) - good), abs=1e-12)


def test_pairs_count_both_sides() -> None:
    """A pair in one group, labelled 1 and 0, at the start: ln 2, one up and one down."""
    pair = [sample([1, 2], [5, 4], label=1.0, beats=[1]), sample([1, 2], [6, 4], label=0.0)]
    for s in pair:
        s.streams["ref_logprobs"] = s.streams["old_logprobs"] = [0.0, 0.0, -1.0, -1.0]
    state = BCO().credit([pair], {})
    batch = pack([pair], totals([pair]), state=state)
    logprobs = batch.streams["ref_logprobs"].clone().requires_grad_()
    loss, _ = normalise(BCO().loss(Outputs(logprobs), batch), batch.totals)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.025, -0.025, 0.025, 0.025])  # beta / 2 / S


def test_what_it_asks_of_the_loop() -> None:
    algorithm = BCO()
    assert BCO.credit is not Algorithm.credit and not algorithm.traits.mates
    traits = algorithm.traits
    assert (traits.wants, traits.needs, traits.whole) == ("labels", ("ref_logprobs", "old_logprobs"), False)
    with pytest.raises(ConfigError, match="delta_decay: got 1"):
        BCO(delta_decay=1.0)
    groups: Groups = [[Sample([1, 2], [False, True], [0.0, 1.0], label=1.0, streams={"ref_logprobs": [0.0, 0.0]})]]
    with pytest.raises(KeyError, match="delta"):
        BCO().loss(Outputs(torch.zeros(1)), pack(groups, totals(groups)))
