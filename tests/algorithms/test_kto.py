"""KTO: mates and the reference point by hand, losses and metrics on packed batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from espalier.algorithms.kto import KTO
from espalier.algorithms.traits import Algorithm
from espalier.errors import ConfigError
from espalier.forest.microbatches import Packing, microbatches
from espalier.forest.pack import pack, totals
from espalier.losses.ops import normalise
from espalier.losses.unpaired import kto
from espalier.types import Batch, Outputs, Sample
from samples import Groups, sample

WIDE = torch.float64


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def labelled(number: int, prompt: list[int], answers: list[list[int]], labels: list[float]) -> list[Sample]:
    return [
        sample(prompt, a, group=number, key=10 * number + i, label=label)
        for i, (a, label) in enumerate(zip(answers, labels, strict=True))
    ]


def three() -> Groups:
    """Prompt 1 2 with two answers, prompt 3 with one, prompt 5 6 7 with one."""
    return [
        labelled(0, [1, 2], [[20, 21, 4], [22, 4]], [1, 0]),
        labelled(1, [3], [[23, 4]], [0]),
        labelled(2, [5, 6, 7], [[24, 25, 26, 4]], [1]),
    ]


def filled(groups: Groups, ratios: list[float]) -> Groups:
    """The streams under which the samples have these log-ratios in all, spread over their trained tokens."""
    samples = [s for group in groups for s in group]
    for s, ratio in zip(samples, ratios, strict=True):
        trained = sum(s.mask)
        s.streams["ref_logprobs"] = [-2.0 if m else 0.0 for m in s.mask]
        s.streams["old_logprobs"] = [-2.0 + ratio / trained if m else 0.0 for m in s.mask]
    return groups


# --------------------------------------------------------------------------------------------------------------- mates


def test_mates_by_hand() -> None:
    mates = KTO().mates(three())
    assert [[(s.tokens, s.mask) for s in group] for group in mates] == [
        [([1, 2, 23, 4], [False, False, True, True])] * 2,
        [([3, 24, 25, 26, 4], [False, True, True, True, True])],
        [([5, 6, 7, 20, 21, 4], [False, False, False, True, True, True])],
    ]
    flat = [s for group in mates for s in group]
    assert {s.part for s in flat} == {"kl"}
    assert [s.group for s in flat] == [0, 0, 1, 2]
    assert [s.key for s in flat] == [-1, -2, -11, -21]  # never a row's own key
    assert all(s.label is None and not s.streams and not s.beats for s in flat)
    assert [s.weights for s in flat][3] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_mates_leave_the_samples_alone() -> None:
    groups = three()
    mates = KTO().mates(groups)
    mates[0][0].tokens.append(99)
    mates[0][0].weights[-1] = 5.0
    assert groups == three()


def test_siblings_take_answers_in_turn() -> None:
    groups = [labelled(0, [1], [[20, 4], [21, 4], [22, 4]], [1, 0, 1]), labelled(1, [2], [[30, 4], [31, 4]], [1, 0])]
    mates = KTO().mates(groups)
    assert [s.tokens for s in mates[0]] == [[1, 30, 4], [1, 31, 4], [1, 30, 4]]
    assert [s.tokens for s in mates[1]] == [[2, 20, 4], [2, 21, 4]]


def test_a_prompt_that_comes_twice_is_no_mate_of_its_own() -> None:
    groups = [labelled(0, [1], [[20, 4]], [1]), labelled(1, [1], [[21, 4]], [0]), labelled(2, [2], [[22, 4]], [0])]
    assert [s.tokens for group in KTO().mates(groups) for s in group] == [[1, 22, 4], [1, 22, 4], [2, 20, 4]]


def test_mates_are_no_longer_than_the_longest_sample() -> None:
    groups = [labelled(0, [1, 2, 3, 4, 5], [[20, 4]], [1]), labelled(1, [6], [[21, 22, 23, 24, 25, 4]], [0])]
    first, second = (group[0] for group in KTO().mates(groups))
    assert first.tokens == [1, 2, 3, 4, 5, 21, 22]  # of seven tokens, as the longest sample
    assert first.mask == [False] * 5 + [True] * 2
    assert second.tokens == [6, 20, 4]


def test_one_prompt_has_no_mates_and_keeps_the_reference_point() -> None:
    algorithm, groups = KTO(), [labelled(0, [1], [[20, 4], [21, 4]], [1, 0])]
    assert algorithm.mates(groups) == []
    assert algorithm.credit(groups, {}) == {"kl": 0.0}
    assert algorithm.credit(groups, {"kl": 1.25}) == {"kl": 1.25}


# ----------------------------------------------------------------------------------------------------- reference point


def test_the_reference_point_by_hand() -> None:
    """Three mates of log-ratios 2, -0.5 and 1.5: their mean is 1. The samples before them do not count."""
    groups = filled([labelled(0, [1, 2], [[9, 4]], [1]), labelled(1, [3], [[8, 4]], [0])], [50.0, 50.0])
    mates = filled([[sample([1], [5, 6], part="kl"), sample([1], [7], part="kl")], [sample([2], [5], part="kl")]],
                   [2.0, -0.5, 1.5])  # fmt: skip
    assert KTO().credit([*groups, *mates], {"kl": 9.0}) == {"kl": pytest.approx(1.0)}
    assert KTO().credit(filled(mates, [2.0, -5.0, 1.5]), {}) == {"kl": 0.0}  # a mean of -0.5 counts as 0


def test_prompt_tokens_do_not_count() -> None:
    (mate,) = filled([[sample([1, 2], [5, 6], part="kl")]], [3.0])[0]
    mate.streams["old_logprobs"][1] = 7.0
    assert KTO().credit([[mate]], {})["kl"] == pytest.approx(3.0)


def test_mates_without_streams_are_refused() -> None:
    mate = sample([1], [5], part="kl", group=3)
    with pytest.raises(ValueError, match="group 3, part 'kl': has no old_logprobs and no ref_logprobs"):
        KTO().credit([[mate]], {})


# ---------------------------------------------------------------------------------------------------------------- loss


def packed(groups: Groups, kl: float) -> Batch:
    batch = pack(groups, totals(groups), state={"kl": kl})
    batch.streams = {name: x.to(WIDE) for name, x in batch.streams.items()}
    return batch


def said(algorithm: KTO, groups: Groups, kl: float, ratios: list[float]) -> tuple[float, dict[str, float], list[float]]:
    """Loss, terms, and the gradient in each sample's log-ratio, every token of which must get the same."""
    batch = packed(filled(groups, ratios), kl)
    logprobs = (batch.streams["old_logprobs"]).clone().requires_grad_()
    loss, shares = normalise(algorithm.loss(Outputs(logprobs), batch), batch.totals)
    loss.backward()
    assert logprobs.grad is not None
    slopes = []
    for row in range(len(batch.samples)):
        own = logprobs.grad[batch.rows == row]
        assert own.max().item() == own.min().item()
        slopes.append(own[0].item())
    return loss.item(), {name: x.item() for name, x in shares.items()}, slopes


def test_numbers_and_gradients_by_hand() -> None:
    """Labels 1, 0, 0, 1 at log-ratios 3, -1, 2, -4 and z = 0.5."""
    algorithm = KTO(beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    ratios, z = [3.0, -1.0, 2.0, -4.0], 0.5
    loss, shares, slopes = said(algorithm, three(), z, ratios)
    p = [sigma(0.2 * (r - z)) for r in ratios]
    x = [1.5 * (1 - p[0]), 0.5 * p[1], 0.5 * p[2], 1.5 * (1 - p[3])]
    assert loss == pytest.approx(sum(x) / 4, abs=1e-6)  # streams are float32
    signs = [-1.5, 0.5, 0.5, -1.5]
    assert slopes == pytest.approx([sign * 0.2 * q * (1 - q) / 4 for sign, q in zip(signs, p, strict=True)], abs=1e-7)
    assert shares["good"] == 0.5
    assert shares["rewards_good"] == pytest.approx(0.2 * (3 - 4) / 4, abs=1e-6)
    assert shares["rewards_bad"] == pytest.approx(0.2 * (-1 + 2) / 4, abs=1e-6)
    assert shares["accuracy"] == 0.5
    assert shares["imbalance"] == pytest.approx((1.5 * 2 - 0.5 * 2) / 4)
    assert shares["kl"] == pytest.approx(z)


def test_at_the_start_every_answer_costs_half_its_weight() -> None:
    loss, shares, slopes = said(KTO(), three(), 0.0, [0.0] * 4)
    assert loss == pytest.approx(0.5)
    assert slopes == pytest.approx([-0.1 / 16, 0.1 / 16, 0.1 / 16, -0.1 / 16])  # beta p (1 - p) / S
    assert shares["kl"] == 0.0


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("ratio", [-30.0, -1.0, 0.0, 0.4, 25.0])
@pytest.mark.parametrize("z", [0.0, 2.0])
def test_gradients_in_double(good: bool, ratio: float, z: float) -> None:
    r = torch.tensor([ratio], dtype=WIDE, requires_grad=True)
    x = kto(r, torch.tensor([good]), z, beta=0.3, desirable=2.0, undesirable=0.7)
    x.sum().backward()
    p = sigma(0.3 * (ratio - z))
    assert x.item() == pytest.approx(2.0 * (1 - p) if good else 0.7 * p, abs=1e-12)
    assert r.grad is not None
    assert r.grad.item() == pytest.approx((-2.0 if good else 0.7) * 0.3 * p * (1 - p), abs=1e-12)


def test_splits_add_up() -> None:
    groups = filled(three(), [3.0, -1.0, 2.0, -4.0])
    sums = totals(groups)
    seen: list[dict[str, float]] = []
    for budget in (1000, 8, 4):
        terms: dict[str, float] = {}
        for forward in microbatches(groups, budget, Packing()):
            batch = pack(forward, sums, state={"kl": 0.3})
            _, shares = normalise(KTO().loss(Outputs(batch.streams["old_logprobs"]), batch), sums)
            for name, x in shares.items():
                terms[name] = terms.get(name, 0.0) + x.item()
        seen.append(terms)
    assert seen[1] == pytest.approx(seen[0], abs=1e-6)
    assert seen[2] == pytest.approx(seen[0], abs=1e-6)


@pytest.mark.parametrize("label", [None, 0.5, -1.0])
def test_other_labels_are_refused(label: Any) -> None:
    groups = filled([labelled(4, [1], [[20, 4]], [1])], [0.0])
    groups[0][0].label = label
    with pytest.raises(ValueError, match=f"group 4: a sample has the label {label}, expected 1"):
        KTO().loss(Outputs(torch.zeros(2)), packed(groups, 0.0))


def test_a_state_that_nobody_filled_is_refused() -> None:
    groups = filled([labelled(4, [1], [[20, 4]], [1])], [0.0])
    with pytest.raises(KeyError, match="kl"):
        KTO().loss(Outputs(torch.zeros(2)), pack(groups, totals(groups)))


def test_what_it_asks_of_the_loop() -> None:
    algorithm = KTO()
    assert algorithm.traits.mates and KTO.mates is not Algorithm.mates and KTO.credit is not Algorithm.credit
    traits = algorithm.traits
    assert (traits.consumes, traits.wants, traits.needs) == ("ranking", "labels", ("ref_logprobs",))
    assert not traits.whole and not traits.linear and traits.says == "tokens"
    with pytest.raises(ConfigError, match="beta: got 0"):
        KTO(beta=0)
