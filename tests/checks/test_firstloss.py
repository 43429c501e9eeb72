"""First losses against numbers by hand, and against the algorithms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from espalier.algorithms.bco import BCO
from espalier.algorithms.cpo import CPO
from espalier.algorithms.dpo import DPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.orpo import ORPO
from espalier.algorithms.prm import PRM
from espalier.algorithms.reward import Reward
from espalier.algorithms.sft import SFT
from espalier.algorithms.simpo import SimPO
from espalier.assembly.runs import RUNS
from espalier.checks.firstloss import Facts, PairFacts, expected_first_loss, expected_terms, varied
from espalier.checks.plainmath import ReadFacts
from espalier.config.fields import infos
from espalier.forest.pack import pack, totals
from espalier.losses.ops import normalise
from espalier.losses.variants import VARIANTS
from espalier.types import Outputs, Sample
from samples import sample

PAIR = (-4.0, -6.0, -5.0, -5.0, 2.0, 3.0)
STILL = (-4.0, -6.0, -4.0, -6.0, 2.0, 3.0)
LN2 = math.log(2)


def test_expected_losses_by_hand() -> None:
    margin = math.log1p(math.exp(-0.2))
    assert expected_first_loss(DPO(), [PAIR]) == pytest.approx(margin) == pytest.approx(0.5981, abs=1e-4)
    assert expected_first_loss(SimPO(), [PAIR]) == pytest.approx(math.log(1 + math.e))
    assert expected_first_loss(ORPO(), [PAIR]) == pytest.approx(0.1 * LN2 + 2)
    assert expected_first_loss(CPO(), [PAIR]) == pytest.approx(margin + 2)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, LN2), ({"label_smoothing": 0.1}, LN2), ({"variant": ("robust",), "label_smoothing": 0.1}, LN2),
        ({"variant": ("sigmoid_norm",)}, LN2), ({"variant": ("ipo",)}, 25.0), ({"variant": ("hinge",)}, 1.0),
        ({"variant": ("ipo",), "ipo_average": True, "beta": 0.25}, 4.0), ({"variant": ("apo_zero",)}, 1.0),
        ({"variant": ("apo_down",)}, 1.0), ({"variant": ("plackett_luce",)}, LN2), ({"sft_coef": 0.5}, LN2 + 1.0),
        ({"variant": ("sigmoid", "hinge=0.5")}, LN2 + 0.5), ({"f_divergence": "js"}, LN2), ({"ld_alpha": 0.5}, LN2),
    ],
)  # fmt: skip
def test_known_first_losses_where_the_reference_is_the_policy(fields: dict[str, Any], expected: float) -> None:
    assert expected_first_loss(DPO(**fields), [STILL, STILL]) == pytest.approx(expected)


def test_orders_of_several_answers_and_what_pairs_do_not_say() -> None:
    orders = [[(0.0, 2.0), (0.0, 1.0), (0.0, 0.0)], [(0.0, 1.0), (0.0, 0.0)]]
    order = DPO(variant=("plackett_luce",))
    assert expected_first_loss(order, [STILL], orders=orders) == pytest.approx((math.log(6) + LN2) / 2)
    # Strengths 3, 2, 1 in this order have the probability 3/6 * 2/3.
    strengths = [(10 * math.log(3), 5.0), (10 * math.log(2), 4.0), (0.0, None), (0.0, 1.0)]
    assert expected_first_loss(order, [PAIR], orders=[strengths]) == pytest.approx(math.log(3))
    assert expected_first_loss(DPO(ld_alpha=0.5), [PAIR]) is None
    # Ratios 1 and -1, of which 0.5 and -1 up to the shorter answer's length: margin 0.1 * (0.75 + 1).
    long = (*PAIR, 0.0, False, 0.5, -1.0)
    assert expected_first_loss(DPO(ld_alpha=0.5), [long]) == pytest.approx(math.log1p(math.exp(-0.175)))
    assert expected_first_loss(SimpleNamespace(), [PAIR]) is None
    with pytest.raises(ValueError, match="no pairs"):
        expected_first_loss(DPO(), [])


def test_margins_ties_grades_and_steps_by_hand() -> None:
    """Scores ln 3 and 0: a lead of ln 3 costs ln 4/3, one of 0 ln 2."""
    three = math.log(3)
    apart = PairFacts(three, 0.0, gap=2.0)
    assert expected_first_loss(Reward(margin=three / 2), [apart]) == pytest.approx(LN2)
    tied = [PairFacts(0.0, 0.0), PairFacts(0.0, 0.0, tied=True)]
    for ties in ("rao_kupper", "davidson"):
        assert expected_first_loss(Reward(ties=ties), tied, groups=[0, 0]) == pytest.approx(three)
    assert expected_first_loss(Reward(), [*tied, apart]) == pytest.approx((LN2 + math.log(4 / 3)) / 2)
    reads = [
        ReadFacts((1.0, 5.0), (10.0, math.nan)),
        ReadFacts((0.0, 1.0), (1.0, 10.0)),
        ReadFacts((7.0,), (math.nan,)),
    ]
    point = Reward(objective="pointwise", dimensions=("a", "b"))
    assert expected_first_loss(point, reads=reads) == pytest.approx((0.0 + 0.5) / 2)
    steps = [ReadFacts((three,), (1.0,)), ReadFacts((three,), (0.0,)), ReadFacts((9.0,), (math.nan,))]
    assert expected_first_loss(PRM(bad_weight=2.0), reads=steps) == pytest.approx(
        (math.log(4 / 3) + 2 * math.log(4)) / 2
    )
    parts = {"main": (6.0, 3.0), "replay": (4.0, 2.0)}
    assert expected_first_loss(SFT(replay_coef=0.1), parts=parts) == pytest.approx(2.2)


def test_sides_of_equal_weight_are_weighed_apart() -> None:
    assert varied(KTO()).desirable_weight != varied(KTO()).undesirable_weight
    assert varied(PRM()).bad_weight != 1 and varied(DPO()) == DPO()


def test_reward_weighs_groups_or_pairs() -> None:
    """Gaps ln 3, ln 3 in one prompt, 0 in another: -log sigma is ln 4/3, ln 4/3, ln 2."""
    three = math.log(3)
    facts = [(three, 0, 0, 0, 1, 1), (three, 0, 0, 0, 1, 1), (1.0, 1.0, 0, 0, 1, 1)]
    easy = math.log(4 / 3)
    by_group = expected_first_loss(Reward(), facts, groups=[0, 0, 1])
    assert by_group == pytest.approx((easy + LN2) / 2)
    assert expected_first_loss(Reward(weighting="pairs"), facts, groups=[0, 0, 1]) == pytest.approx(
        (2 * easy + LN2) / 3
    )
    terms = expected_terms(Reward(centering=0.01), Facts([PairFacts(*p) for p in facts], [0, 0, 1]))
    assert terms is not None and terms["centering"] == (pytest.approx((three**2 + 4) / 2), 0.01)


def test_single_answers_by_hand() -> None:
    """Two good answers and a bad one: at ratios of 0 each costs half its weight, or ln 2."""
    facts = [STILL, (-3.0, 0.0, -3.0, 0.0, 2.0, 0.0)]
    assert expected_first_loss(KTO(undesirable_weight=3.0), facts) == pytest.approx((0.5 + 1.5 + 0.5) / 3)
    assert expected_first_loss(BCO(), facts) == pytest.approx(LN2)
    good = [(-3.0, 0.0, -4.0, 0.0, 2.0, 0.0)]
    assert expected_first_loss(KTO(beta=1.0), good) == pytest.approx(1 / (1 + math.e))
    assert expected_first_loss(BCO(beta=1.0), good, moving=1.0) == pytest.approx(LN2)


@pytest.mark.parametrize("algorithm", [KTO(beta=0.5, undesirable_weight=2.0), BCO(beta=0.5)], ids=str)
def test_expected_losses_of_single_answers_equal_the_algorithms(algorithm: Any) -> None:
    groups, said, facts = run_of(4)
    single = [[replace(s, beats=[])] for group in groups for s in group]
    sums = totals(single)
    batch = pack(single, sums, state={"kl": 0.3, "delta": 0.3})
    loss, _ = normalise(algorithm.loss(Outputs(said), batch), sums)
    assert float(loss) == pytest.approx(expected_first_loss(algorithm, facts, moving=0.3), rel=1e-6)


def run_of(seed: int) -> tuple[list[list[Sample]], torch.Tensor, list[tuple[float, float, float, float, float, float]]]:
    """Groups of a pair, the log-probabilities of a model, and the facts of each pair, summed in plain Python."""
    draw = torch.Generator().manual_seed(seed)
    groups: list[list[Sample]] = []
    said: list[float] = []
    facts = []
    for number in range(3):
        chosen, rejected = sample([5, 6], range(7, 10 + number), group=number), sample([5, 6], range(30, 34))
        chosen.beats, chosen.label, rejected.label = [1], 1.0, 0.0
        sums = []
        for s in (chosen, rejected):
            policy, ref = (-torch.rand(sum(s.mask), generator=draw).double() * 3 - 0.1 for _ in range(2))
            s.streams["ref_logprobs"] = [0.0, 0.0, *ref.tolist()]
            said += policy.tolist()
            sums.append((float(policy.sum()), float(ref.sum())))
        groups.append([chosen, rejected])
        (w, ref_w), (l, ref_l) = sums
        facts.append((w, l, ref_w, ref_l, float(sum(chosen.mask)), float(sum(rejected.mask))))
    return groups, torch.tensor(said, dtype=torch.float64), facts


@pytest.mark.parametrize(
    "algorithm",
    [
        DPO(), DPO(variant=("sigmoid_norm",)), DPO(label_smoothing=0.2), DPO(variant=("ipo",)),
        DPO(variant=("robust",), label_smoothing=0.2), DPO(variant=("ipo",), ipo_average=True), DPO(sft_coef=0.7),
        DPO(variant=("hinge", "apo_zero=2", "apo_down=0.3")), DPO(f_divergence="js"), DPO(f_divergence="alpha"),
        DPO(variant=("plackett_luce",)), SimPO(sft_coef=0.3), ORPO(), CPO(),
    ],
    ids=str,
)  # fmt: skip
def test_expected_losses_equal_those_of_the_algorithms(algorithm: Any) -> None:
    groups, said, facts = run_of(3)
    sums = totals(groups)
    batch = pack(groups, sums)
    loss, _ = normalise(algorithm.loss(Outputs(said), batch), sums)
    assert float(loss) == pytest.approx(expected_first_loss(algorithm, facts), rel=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_known(name: str) -> None:
    """`firstloss` names the variants by itself, so that the two can disagree; but it may not lack one."""
    algorithm = DPO(variant=(name,), label_smoothing=0.1 if name == "robust" else 0.0)
    terms = expected_terms(algorithm, Facts([PairFacts(*STILL)]))
    assert terms is not None and list(terms) == [name]


ALGORITHMS = [infos(run)["algorithm"].annotation for run in RUNS.values()]
JUDGED = [cls for cls in ALGORITHMS if cls is not None and cls().traits.consumes == "ranking"]


@pytest.mark.parametrize("cls", JUDGED)
def test_every_algorithm_of_judgements_is_known(cls: Any) -> None:
    assert expected_terms(cls(), Facts([PairFacts(*PAIR)])) is not None
