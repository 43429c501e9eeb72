"""The reward model's objectives on packed batches: group weights, margins, ties, dimensions, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.algorithms.dimensions import total_weights
from espalier.algorithms.reward import Reward
from espalier.errors import ConfigError, DataError
from espalier.forest.pack import pack, totals
from espalier.losses.ops import normalise
from espalier.types import Batch, Outputs, Sample, Term
from samples import Groups, sample

NAN = math.nan
WIDE = torch.float64


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def answer(number: int, place: int, **fields: Any) -> Sample:
    s = sample([1, 2, 3], [10 + place, 4], group=number, **fields)
    s.reads = [len(s) - 1]
    return s


def ranked(number: int, labels: list[float], grades: list[tuple[float, ...]] | None = None) -> list[Sample]:
    """Answers with every comparison that their labels allow."""
    group = [answer(number, place, label=label) for place, label in enumerate(labels)]
    for i, s in enumerate(group):
        s.beats = [j for j, other in enumerate(labels) if labels[i] > other]
        s.ties = [j for j, other in enumerate(labels) if labels[i] == other and j > i]
        s.grades = [grades[i]] if grades else []
    return group


def terms_of(algorithm: Reward, groups: Groups, scores: Tensor) -> dict[str, Term]:
    batch = pack(groups, totals(groups), says="reads")
    return algorithm.loss(Outputs(torch.zeros(0), scores_RK=scores.view(len(batch.samples), -1)), batch)


def said(algorithm: Reward, groups: Groups, scores: list[Any]) -> tuple[float, dict[str, float], list[float]]:
    """Loss, the step's terms, and the gradient of the loss in the scores."""
    scores_S = torch.tensor(scores, dtype=WIDE, requires_grad=True)
    loss, shares = normalise(terms_of(algorithm, groups, scores_S), totals(groups))
    loss.backward()
    assert scores_S.grad is not None
    return loss.item(), {name: x.item() for name, x in shares.items()}, scores_S.grad.flatten().tolist()


# ------------------------------------------------------------------------------------------------------------- weights


def test_a_group_weighs_one_whatever_its_pairs() -> None:
    """Three answers (three pairs) and a pair: 1/2 (1/3 sum of three + one)."""
    groups = [ranked(0, [2, 1, 0]), ranked(1, [0, 1])]
    loss, shares, slope = said(Reward(), groups, [1.0, 0.5, -1.0, 0.25, 2.0])
    three = softplus(-0.5) + softplus(-2.0) + softplus(-1.5)
    assert loss == pytest.approx((three / 3 + softplus(-1.75)) / 2)
    assert shares["accuracy"] == 1.0
    assert shares["margin"] == pytest.approx((0.5 + 2.0 + 1.5 + 1.75) / 4)
    assert shares["rewards_chosen"] == pytest.approx((1 + 1 + 0.5 + 2) / 4)
    assert shares["rewards_rejected"] == pytest.approx((0.5 - 1 - 1 + 0.25) / 4)
    s = [1 / (1 + math.exp(x)) for x in (0.5, 2.0, 1.5, 1.75)]  # 1 - sigma(gap)
    first, last = -(s[0] + s[1]) / 6, (s[1] + s[2]) / 6
    assert slope == pytest.approx([first, (s[0] - s[2]) / 6, last, s[3] / 2, -s[3] / 2], abs=1e-12)


@pytest.mark.parametrize("k", range(4, 10))
def test_k_answers_by_hand(k: int) -> None:
    scores = [0.3 * i - 0.05 * i * i for i in range(k)]
    loss, _, _ = said(Reward(), [ranked(0, [float(i) for i in range(k)])], scores)
    pairs = [softplus(scores[j] - scores[i]) for i in range(k) for j in range(i)]
    assert loss == pytest.approx(sum(pairs) / (k * (k - 1) / 2))


def test_pairs_weigh_alike_where_asked() -> None:
    groups = [ranked(0, [2, 1, 0]), ranked(1, [0, 1])]
    loss, _, _ = said(Reward(weighting="pairs"), groups, [1.0, 0.5, -1.0, 0.25, 2.0])
    assert loss == pytest.approx((softplus(-0.5) + softplus(-2.0) + softplus(-1.5) + softplus(-1.75)) / 4)


@pytest.mark.parametrize(
    "algorithm",
    [
        Reward(centering=0.1),
        Reward(weighting="pairs", centering=0.1, margin=0.2),
        Reward(objective="plackett_luce", centering=0.1),
        Reward(objective="pointwise"),
        Reward(ties="davidson", centering=0.1, pointwise_coef=0.3),
    ],
)
def test_splits_add_up(algorithm: Reward) -> None:
    """Every group in a forward of its own says what one forward says."""
    labels = [[2.0, 1.0, 1.0], [0.0, 3.0], [1.0, 1.0], [4.0, 0.0, 2.0, 1.0]]
    groups = [ranked(g, own, [(x + 1,) for x in own]) for g, own in enumerate(labels)]
    scores = torch.randn(sum(map(len, groups)), dtype=WIDE, generator=torch.Generator().manual_seed(1))
    _, whole = normalise(terms_of(algorithm, groups, scores), totals(groups))
    parts: dict[str, float] = {}
    at = 0
    for group in groups:
        batch = pack([group], totals(groups), says="reads")
        own = Outputs(torch.zeros(0), scores_RK=scores[at : at + len(group), None])
        _, shares = normalise(algorithm.loss(own, batch), totals(groups))
        at += len(group)
        for name, x in shares.items():
            parts[name] = parts.get(name, 0.0) + x.item()
    assert parts == pytest.approx({name: x.item() for name, x in whole.items()}, abs=1e-12)


# ---------------------------------------------------------------------------------------------------- other objectives


def test_margins_follow_label_gaps() -> None:
    """Labels 4 > 1 at 0.5 a point ask for a lead of 1.5; a pair turned around asks for the same."""
    group = ranked(0, [4.0, 1.0])
    loss, _, _ = said(Reward(margin=0.5), [group], [2.0, 0.0])
    assert loss == pytest.approx(softplus(-(2.0 - 1.5)))
    group[0].beats, group[1].beats = [], [0]
    loss, _, _ = said(Reward(margin=0.5), [group], [2.0, 0.0])
    assert loss == pytest.approx(softplus(2.0 + 1.5))


def test_smoothing_and_centering_join_in() -> None:
    loss, shares, _ = said(Reward(label_smoothing=0.1, centering=0.01), [ranked(0, [1, 0])], [2.0, 1.0])
    assert shares["bradley_terry"] == pytest.approx(0.9 * softplus(-1) + 0.1 * softplus(1))
    assert shares["centering"] == pytest.approx(9.0)
    assert loss == pytest.approx(shares["bradley_terry"] + 0.09)


def test_centering_is_weighted_as_pairs_are() -> None:
    """Three answers of sums 3, 1, 0 and a pair of sum 2: 1/2 ((9 + 1 + 0) / 3 + 4), or the mean of all four squares."""
    groups, scores = [ranked(0, [2, 1, 0]), ranked(1, [1, 0])], [2.0, 1.0, -1.0, 2.0, 0.0]
    assert said(Reward(centering=1.0), groups, scores)[1]["centering"] == pytest.approx((10 / 3 + 4) / 2)
    assert said(Reward(centering=1.0, weighting="pairs"), groups, scores)[1]["centering"] == pytest.approx(14 / 4)


def test_plackett_luce_is_over_groups() -> None:
    """Orders of strengths 3, 2, 1 (probability 1/3) and of 1, 3 (1/4)."""
    scores = [math.log(x) for x in (3, 2, 1, 1, 3)]
    loss, _, _ = said(Reward(objective="plackett_luce"), [ranked(0, [2, 1, 0]), ranked(1, [1, 0])], scores)
    assert loss == pytest.approx((math.log(3) + math.log(4)) / 2)


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
def test_ties_count_as_comparisons(kind: Any) -> None:
    """Labels 1, 1, 0 at equal scores and a tie share of 1/3: every comparison costs log 3, the group one of them."""
    loss, shares, _ = said(Reward(ties=kind), [ranked(0, [1, 1, 0])], [0.5, 0.5, 0.5])
    assert loss == pytest.approx(math.log(3))
    assert shares["margin"] == 0.0
    without, _, _ = said(Reward(), [ranked(0, [1, 1, 0])], [0.5, 0.5, 0.5])
    assert without == pytest.approx(math.log(2))
    assert Reward(ties=kind).traits.wants == "comparisons"


@pytest.mark.parametrize("kind", ["rao_kupper", "davidson"])
def test_ties_pull_together(kind: Any) -> None:
    _, _, slope = said(Reward(ties=kind), [ranked(0, [1, 1])], [1.0, -1.0])
    assert slope[0] > 0 > slope[1]


def test_pointwise_maps_grades() -> None:
    """On a scale of 1 to 5, a grade of 5 is +1 and a grade of 2 is -0.5."""
    groups = [ranked(0, [0, 0], [(5.0,), (2.0,)]), ranked(1, [0], [(3.0,)])]
    algorithm = Reward(objective="pointwise", grade_high=5.0)
    loss, shares, slope = said(algorithm, groups, [0.5, 0.0, 1.0])
    assert loss == pytest.approx((0.25 + 0.25 + 1.0) / 3)
    assert set(shares) == {"pointwise"}
    assert slope == pytest.approx([-1 / 3, 1 / 3, 2 / 3])
    assert algorithm.traits.wants == "grades"


def test_pointwise_beside_pairs() -> None:
    group = ranked(0, [1, 0], [(10.0,), (NAN,)])
    loss, shares, _ = said(Reward(pointwise_coef=0.5), [group], [0.0, 0.0])
    assert shares["pointwise"] == 1.0  # one known grade, 0 away from +1
    assert loss == pytest.approx(math.log(2) + 0.5)


def test_dimensions_share_the_total() -> None:
    """helpful=3 and brief=-1 weigh 3/4 and -1/4; the grade that nobody gave is left out of the second answer's mean."""
    algorithm = Reward(dimensions=("helpful=3", "brief=-1"), pointwise_coef=1.0)
    group = ranked(0, [1, 0], [(10.0, 1.0), (NAN, 5.5)])
    loss, shares, slope = said(algorithm, [group], [[2.0, 1.0], [-1.0, 3.0]])
    total = [0.75 * 2 - 0.25, -0.75 - 0.75]
    gap = total[0] - total[1]
    assert shares["margin"] == pytest.approx(gap)
    assert shares["pointwise"] == pytest.approx(((1 + 4) / 2 + 9) / 2)
    assert loss == pytest.approx(softplus(-gap) + shares["pointwise"])
    down = 1 / (1 + math.exp(gap))
    compared = [-0.75 * down, 0.25 * down, 0.75 * down, -0.25 * down]
    graded = [2 * 1 / 2 / 2, 2 * 2 / 2 / 2, 0.0, 2 * 3 / 2]
    assert slope == pytest.approx([a + b for a, b in zip(compared, graded, strict=True)])


def test_dimensions_without_grades_train_the_total_alone() -> None:
    groups = [ranked(0, [1, 0])]
    loss, shares, _ = said(Reward(dimensions=("a", "b"), pointwise_coef=1.0), groups, [[1.0, 1.0], [0.0, 0.0]])
    assert (loss, shares["pointwise"]) == (pytest.approx(softplus(-1.0)), 0.0)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_every_sample_is_read_once() -> None:
    group = ranked(0, [1, 0])
    group[1].reads = [2, 4]
    batch = pack([group], totals([group]), says="reads")
    with pytest.raises(ValueError, match="got 2 reads of a sample, expected 1"):
        Reward().loss(Outputs(torch.zeros(0), scores_RK=torch.zeros(3, 1)), batch)


def batch_of(group: list[Sample]) -> Batch:
    return pack([group], totals([group]), says="reads")


@pytest.mark.parametrize("shape", [(2, 2), (3, 1)])
def test_scores_have_the_named_dimensions(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        Reward().loss(Outputs(torch.zeros(0), scores_RK=torch.zeros(shape)), batch_of(ranked(0, [1, 0])))
    with pytest.raises(ValueError, match="shape none"):
        Reward().loss(Outputs(torch.zeros(0)), batch_of(ranked(0, [1, 0])))


@pytest.mark.parametrize(
    ("grades", "said_"),
    [([(0.0,), (5.0,)], "grades 0, expected 1 to 10"), ([(5.0, 5.0), (5.0, 5.0)], "has 2 grades, expected 1")],
)
def test_grades_off_the_scale_stop_the_run(grades: list[tuple[float, ...]], said_: str) -> None:
    with pytest.raises(DataError, match=said_):
        said(Reward(objective="pointwise"), [ranked(7, [1, 0], grades)], [0.0, 0.0])


def test_margins_need_labels() -> None:
    group = ranked(0, [1, 0])
    group[1].label = None
    with pytest.raises(ValueError, match="has no label"):
        said(Reward(margin=1.0), [group], [0.0, 0.0])


@pytest.mark.parametrize(
    ("fields", "said_"),
    [
        ({"objective": "pointwise", "centering": 0.1}, "centering is about pairs"),
        ({"objective": "pointwise", "pointwise_coef": 0.1}, "beside comparisons"),
        ({"objective": "plackett_luce", "margin": 1.0}, "margin is for bradley_terry"),
        ({"objective": "plackett_luce", "ties": "davidson"}, "ties is for bradley_terry"),
        ({"objective": "pointwise", "weighting": "pairs"}, "weighting pairs is for bradley_terry"),
        ({"ties": "davidson", "weighting": "pairs"}, "counts no ties"),
        ({"ties": "davidson", "margin": 1.0}, "margin and ties"),
        ({"ties": "rao_kupper", "label_smoothing": 0.1}, "label_smoothing and ties"),
        ({"label_smoothing": 0.5}, "label_smoothing: got 0.5"),
        ({"grade_low": 5.0, "grade_high": 5.0}, "grade_low is not below"),
        ({"calibrate_on": "none", "calibrate_scale": True}, "calibrate_scale is given"),
        ({"dimensions": ("a", "a")}, "expected a once, as a or a=WEIGHT"),
        ({"dimensions": ("a=x",)}, "expected a once, as a or a=WEIGHT"),
        ({"dimensions": ("a=0", "b=0")}, "all weigh 0"),
    ],
)
def test_configs_that_contradict_themselves(fields: dict[str, Any], said_: str) -> None:
    with pytest.raises(ConfigError, match=said_):
        Reward(**fields)


def test_what_it_asks_of_the_loop() -> None:
    traits = Reward().traits
    assert (traits.consumes, traits.wants, traits.needs) == ("ranking", "pairs", ())
    assert traits.says == "reads" and traits.whole and not traits.linear
    assert total_weights(()) == {}


def test_the_optimum_on_packed_batches() -> None:
    """An answer preferred in 7 of 10 groups: the gradient is 0 where the scores differ by logit(0.7)."""
    groups = [ranked(g, [1, 0] if g < 7 else [0, 1]) for g in range(10)]
    gap = torch.tensor(math.log(0.7 / 0.3), dtype=WIDE, requires_grad=True)
    scores = torch.stack([gap, torch.zeros((), dtype=WIDE)]).repeat(10)
    loss, _ = normalise(terms_of(Reward(), groups, scores), totals(groups))
    (slope,) = torch.autograd.grad(loss, gap)
    assert abs(slope.item()) <= 1e-12
