"""DPO, SimPO, ORPO and CPO on packed batches: values and gradients by hand, K-way groups, splits, and refusals."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.algorithms.cpo import CPO
from espalier.algorithms.dpo import DPO
from espalier.algorithms.orpo import ORPO
from espalier.algorithms.simpo import SimPO
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.errors import ConfigError
from espalier.forest.pack import pack, totals
from espalier.losses.ops import normalise
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs
from samples import Groups, sample
from tiny import tiny_model

METRICS = {
    *("accuracy", "margin", "rewards_chosen", "rewards_rejected"),
    *("logprobs_chosen", "logprobs_rejected", "length_chosen", "length_rejected"),
}


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def group(
    number: int, answers: list[list[int]], beats: list[list[int]], reference: list[list[float]], labels: list[float]
) -> list[Any]:
    """Answers to the prompt 1 2 3, with the reference's log-probabilities."""
    made = []
    for answer, wins, ref, label in zip(answers, beats, reference, labels, strict=True):
        s = sample([1, 2, 3], answer, group=number, beats=wins, label=label)
        s.streams["ref_logprobs"] = [0.0, 0.0, 0.0, *ref]
        made.append(s)
    return made


def three() -> Groups:
    """A pair whose answers have 2 and 3 tokens, and a ranking 0 > 1 = 2 > 3 with lengths 1, 2, 1, 3."""
    return [
        group(0, [[4, 5], [6, 7, 8]], [[1], []], [[-1, -2], [-0.5, -0.5, -1]], [1, 0]),
        group(
            1,
            [[9], [10, 11], [12], [13, 14, 15]],
            [[1, 2, 3], [3], [3], []],
            [[-1.5], [-1, -1], [-2], [-1, -0.25, -3]],
            [2, 1, 1, 0],
        ),
    ]


POLICY = [[-0.5, -1.25], [-1, -2, -0.5], [-1], [-0.75, -1.5], [-2.5], [-0.5, -1, -1.25]]
REFERENCE = [[-1, -2], [-0.5, -0.5, -1], [-1.5], [-1, -1], [-2], [-1, -0.25, -3]]
PAIRS = [(0, 1), (2, 3), (2, 4), (2, 5), (3, 5), (4, 5)]
LENGTHS = [len(x) for x in POLICY]
S = [sum(x) for x in POLICY]
R = [sum(x) - sum(y) for x, y in zip(POLICY, REFERENCE, strict=True)]


def evaluate(algorithm: Any, groups: Groups | None = None) -> tuple[float, dict[str, float], Tensor]:
    """Loss, terms, and d loss / d log-probability of every token."""
    groups = groups or three()
    sums = totals(groups)
    logprobs = torch.tensor([y for x in POLICY for y in x], dtype=torch.float64, requires_grad=True)
    loss, shares = normalise(algorithm.loss(Outputs(logprobs), pack(groups, sums)), sums)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), {name: x.item() for name, x in shares.items()}, logprobs.grad


def spread(slopes: list[tuple[float, float]], *, mean: bool = False) -> list[float]:
    """Gradient by token, from d loss / d (sum or mean of the answer) of both sides of every pair."""
    out = [0.0] * len(POLICY)
    for (w, l), (g_w, g_l) in zip(PAIRS, slopes, strict=True):
        out[w] += g_w / len(PAIRS) / (LENGTHS[w] if mean else 1)
        out[l] += g_l / len(PAIRS) / (LENGTHS[l] if mean else 1)
    return [g for g, n in zip(out, LENGTHS, strict=True) for _ in range(n)]


def both(slopes: list[float]) -> list[tuple[float, float]]:
    return [(g, -g) for g in slopes]


NLL = -(S[0] + S[2]) / 3  # preferred answers: 2 tokens and 1
NLL_SLOPES = [-1 / 3, -1 / 3, 0, 0, 0, -1 / 3, *[0] * 6]


def plus_nll(slopes: list[float], coef: float) -> list[float]:
    return [a + coef * b for a, b in zip(slopes, NLL_SLOPES, strict=True)]


def test_dpo_by_hand() -> None:
    margins = [0.3 * (R[w] - R[l]) for w, l in PAIRS]
    loss, terms, gradient = evaluate(DPO(beta=0.3))
    assert loss == terms["sigmoid"] == pytest.approx(sum(softplus(-m) for m in margins) / 6, rel=1e-12)
    assert gradient.tolist() == pytest.approx(spread(both([-0.3 * sigma(-m) for m in margins])), abs=1e-12)
    assert set(terms) == {"sigmoid", *METRICS}


def test_metrics_by_hand() -> None:
    _, terms, _ = evaluate(DPO(beta=0.3, sft_coef=1.0))
    assert R == [1.25, -1.5, 0.5, -0.25, -0.5, 1.5]
    want = {
        "accuracy": 3 / 6,
        "margin": 0.3 * (2.75 + 0.75 + 1.0 - 1.0 - 1.75 - 2.0) / 6,
        "rewards_chosen": 0.3 * (1.25 + 3 * 0.5 - 0.25 - 0.5) / 6,
        "rewards_rejected": 0.3 * (-1.5 - 0.25 - 0.5 + 3 * 1.5) / 6,
        "logprobs_chosen": (S[0] + 3 * S[2] + S[3] + S[4]) / 6,
        "logprobs_rejected": (S[1] + S[3] + S[4] + 3 * S[5]) / 6,
        "length_chosen": (2 + 3 * 1 + 2 + 1) / 6,
        "length_rejected": (3 + 2 + 1 + 3 * 3) / 6,
        "nll": NLL,
    }
    assert {name: terms[name] for name in want} == pytest.approx(want, rel=1e-12)


def test_dpo_is_ln_2_where_policy_and_reference_agree() -> None:
    groups = three()
    for s, logprobs in zip((s for g in groups for s in g), POLICY, strict=True):
        s.streams["ref_logprobs"] = [0.0, 0.0, 0.0, *logprobs]
    for algorithm in (
        DPO(),
        DPO(beta=2.0, label_smoothing=0.1),
        DPO(variant=("robust",), label_smoothing=0.1),
        DPO(f_divergence="js", ld_alpha=0.5),
    ):
        loss, terms, _ = evaluate(algorithm, groups)
        assert loss == pytest.approx(math.log(2), rel=1e-14)
        assert terms["margin"] == terms["accuracy"] == 0
    loss, _, _ = evaluate(DPO(variant=("plackett_luce",)), groups)
    # uniform over the 2 orders of the pair, and over the 24 orders of four, of which the tie allows 2
    assert loss == pytest.approx((math.log(2) + math.log(24)) / 2, rel=1e-12)


def test_ipo_by_hand() -> None:
    tau = 0.25
    gaps = [R[w] / LENGTHS[w] - R[l] / LENGTHS[l] - 1 / (2 * tau) for w, l in PAIRS]
    loss, terms, gradient = evaluate(DPO(variant=("ipo",), beta=tau, ipo_average=True))
    assert loss == terms["ipo"] == pytest.approx(sum(g * g for g in gaps) / 6, rel=1e-12)
    assert gradient.tolist() == pytest.approx(spread(both([2 * g for g in gaps]), mean=True), abs=1e-12)
    gaps = [R[w] - R[l] - 1 / (2 * tau) for w, l in PAIRS]
    loss, _, gradient = evaluate(DPO(variant=("ipo",), beta=tau))
    assert loss == pytest.approx(sum(g * g for g in gaps) / 6, rel=1e-12)
    assert gradient.tolist() == pytest.approx(spread(both([2 * g for g in gaps])), abs=1e-12)


def test_hinge_by_hand() -> None:
    margins = [0.6 * (R[w] - R[l]) for w, l in PAIRS]
    assert [m < 1 for m in margins] == [False, True, True, True, True, True]
    loss, _, gradient = evaluate(DPO(variant=("hinge",), beta=0.6))
    assert loss == pytest.approx(sum(max(0, 1 - m) for m in margins) / 6, rel=1e-12)
    assert gradient.tolist() == pytest.approx(spread(both([-0.6 * (m < 1) for m in margins])), abs=1e-12)


def test_simpo_by_hand() -> None:
    margins = [2.5 * (S[w] / LENGTHS[w] - S[l] / LENGTHS[l]) for w, l in PAIRS]
    loss, terms, gradient = evaluate(SimPO(beta=2.5, gamma=0.4, sft_coef=0.5))
    assert terms["simpo"] == pytest.approx(sum(softplus(0.4 - m) for m in margins) / 6, rel=1e-12)
    assert loss == pytest.approx(terms["simpo"] + 0.5 * NLL, rel=1e-12)
    assert terms["margin"] == pytest.approx(sum(margins) / 6, rel=1e-12)
    want = spread(both([-2.5 * sigma(0.4 - m) for m in margins]), mean=True)
    assert gradient.tolist() == pytest.approx(plus_nll(want, 0.5), abs=1e-12)
    assert set(terms) == {"simpo", "nll", *METRICS}


def test_orpo_by_hand() -> None:
    p = [math.exp(x / n) for x, n in zip(S, LENGTHS, strict=True)]
    odds = [x / (1 - x) for x in p]
    loss, terms, gradient = evaluate(ORPO(odds_coef=0.2))
    assert terms["odds_ratio"] == pytest.approx(sum(math.log1p(odds[l] / odds[w]) for w, l in PAIRS) / 6, rel=1e-12)
    assert loss == pytest.approx(NLL + 0.2 * terms["odds_ratio"], rel=1e-12)
    slopes = []
    for w, l in PAIRS:
        wrong = 1 / (1 + odds[w] / odds[l])
        slopes.append((-0.2 * wrong / (1 - p[w]), 0.2 * wrong / (1 - p[l])))
    assert gradient.tolist() == pytest.approx(plus_nll(spread(slopes, mean=True), 1.0), abs=1e-12)
    assert terms["margin"] == pytest.approx(0.2 * sum(math.log(odds[w] / odds[l]) for w, l in PAIRS) / 6, rel=1e-12)


def test_cpo_by_hand() -> None:
    margins = [0.3 * (S[w] - S[l]) for w, l in PAIRS]
    loss, terms, gradient = evaluate(CPO(beta=0.3, sft_coef=0.7))
    assert terms["cpo"] == pytest.approx(sum(softplus(-m) for m in margins) / 6, rel=1e-12)
    assert loss == pytest.approx(terms["cpo"] + 0.7 * NLL, rel=1e-12)
    want = spread(both([-0.3 * sigma(-m) for m in margins]))
    assert gradient.tolist() == pytest.approx(plus_nll(want, 0.7), abs=1e-12)
    assert terms["rewards_chosen"] == pytest.approx(0.3 * terms["logprobs_chosen"], rel=1e-12)


def test_plackett_luce_is_dpo_on_pairs_and_the_permutation_sum_on_lists() -> None:
    pair = three()[:1]
    logprobs = torch.tensor([y for x in POLICY[:2] for y in x], dtype=torch.float64)
    sums = totals(pair)
    a, b = (
        normalise(DPO(variant=(name,), beta=0.3).loss(Outputs(logprobs), pack(pair, sums)), sums)[0].item()
        for name in ("sigmoid", "plackett_luce")
    )
    assert a == pytest.approx(b, rel=1e-12)
    _, terms, _ = evaluate(DPO(variant=("plackett_luce",), beta=0.3))
    strength = {i: math.exp(0.3 * R[i]) for i in range(2, 6)}
    likely = []
    for order in ((2, 3, 4, 5), (2, 4, 3, 5)):
        left = [sum(strength[i] for i in order[k:]) for k in range(4)]
        likely.append(math.prod(strength[i] / rest for i, rest in zip(order, left, strict=True)))
    assert terms["plackett_luce"] == pytest.approx((a - math.log(sum(likely) / 2)) / 2, rel=1e-12)


def test_length_desensitisation_cuts_every_pair_at_its_own_length() -> None:
    token = [[x - y for x, y in zip(*both, strict=True)] for both in zip(POLICY, REFERENCE, strict=True)]

    def margin(w: int, l: int) -> float:
        m = min(LENGTHS[w], LENGTHS[l])
        side = [sum(x * (1 if i < m else 0.3) for i, x in enumerate(token[k])) for k in (w, l)]
        return side[0] - side[1]

    loss, terms, _ = evaluate(DPO(beta=1.0, ld_alpha=0.3))
    assert loss == pytest.approx(sum(softplus(-margin(w, l)) for w, l in PAIRS) / 6, rel=1e-7)
    assert terms["margin"] == pytest.approx(sum(margin(w, l) for w, l in PAIRS) / 6, rel=1e-7)
    assert terms["logprobs_rejected"] == pytest.approx((S[1] + S[3] + S[4] + 3 * S[5]) / 6)  # whole sums


def test_variants_add_up_with_their_weights() -> None:
    parts = {name: evaluate(DPO(variant=(name,))) for name in ("sigmoid", "ipo", "plackett_luce")}
    loss, terms, gradient = evaluate(DPO(variant=("sigmoid", "ipo=0.25", "plackett_luce=2"), sft_coef=0.5))
    weights = {"sigmoid": 1.0, "ipo": 0.25, "plackett_luce": 2.0}
    assert loss == pytest.approx(sum(w * parts[n][0] for n, w in weights.items()) + 0.5 * NLL, rel=1e-12)
    for name in weights:
        assert terms[name] == pytest.approx(parts[name][0], rel=1e-12)
    want: Any = sum(w * parts[n][2] for n, w in weights.items())
    assert gradient.tolist() == pytest.approx(plus_nll(want.tolist(), 0.5), abs=1e-12)


def test_reverse_kl_is_the_limit_of_alpha() -> None:
    want = evaluate(DPO(f_divergence="reverse_kl"))
    assert want[0] == evaluate(DPO())[0]
    got = evaluate(DPO(f_divergence="alpha", divergence_alpha=1e-8))
    assert got[0] == pytest.approx(want[0], rel=1e-7)
    assert got[2].tolist() == pytest.approx(want[2].tolist(), abs=1e-7)
    assert abs(evaluate(DPO(f_divergence="js"))[0] - want[0]) > 1e-3


ALL = [
    DPO(),
    DPO(variant=("ipo", "hinge", "sigmoid_norm", "robust", "plackett_luce"), label_smoothing=0.1, sft_coef=0.3),
    DPO(variant=("apo_zero", "apo_down"), ld_alpha=0.4),
    DPO(f_divergence="alpha"),
    SimPO(sft_coef=0.2),
    ORPO(),
    CPO(),
]


@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: type(a).__name__)
def test_no_split_and_no_order_changes_the_step(algorithm: Any) -> None:
    assert not algorithm.traits.linear and algorithm.traits.whole and algorithm.traits.consumes == "ranking"
    assert algorithm.traits.needs == (("ref_logprobs",) if isinstance(algorithm, DPO) else ())

    def step(groups: Groups, budget: int) -> tuple[float, dict[str, float], list[Tensor]]:
        policy = Policy(tiny_model("gpt2").double(), "forest")
        learner = TorchLearner(policy, OptimConfig(), LearnerOptions(budget=budget, whole=True))

        def loss(outputs: Outputs, batch: Batch) -> Any:
            return algorithm.loss(outputs, batch)

        result = learner.forward_backward(groups, loss, {}, 0)
        return result.loss, result.terms, [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    want = step(three(), 10_000)
    for budget, order in itertools.product((1, 16, 10_000), ([0, 1], [1, 0])):
        got = step([three()[i] for i in order], budget)
        assert got[0] == pytest.approx(want[0], rel=1e-12)
        assert got[1] == pytest.approx(want[1], rel=1e-12)
        for a, b in zip(got[2], want[2], strict=True):
            assert (a - b).abs().max() < 1e-13


def test_trust_region_moves_the_reference() -> None:
    assert DPO().traits.sync_every == DPO().traits.sync_alpha == 0
    moving = DPO(sync_every=512, sync_alpha=1.0).traits
    assert (moving.sync_every, moving.sync_alpha) == (512, 1.0)
    assert DPO(sync_every=8).traits.sync_alpha == 0.6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variant": ("sigmod",)}, "Did you mean sigmoid"),
        ({"variant": ()}, "not empty|one or more"),
        ({"variant": ("ipo=much",)}, "ipo=WEIGHT above 0"),
        ({"variant": ("ipo=0",)}, "above 0"),
        ({"variant": ("ipo=inf",)}, "above 0"),
        ({"variant": ("ipo", "ipo=2")}, "expected ipo once"),
        ({"variant": ("robust",)}, "robust needs label_smoothing"),
        ({"variant": ("robust",), "label_smoothing": 0.5}, "label_smoothing: got 0.5"),
        ({"variant": ("hinge",), "label_smoothing": 0.1}, "label_smoothing is for sigmoid, sigmoid_norm, robust"),
        ({"ipo_average": True}, "ipo is not among the variants"),
        ({"variant": ("apo_zero",), "f_divergence": "js"}, "a constant that cancels"),
        ({"divergence_alpha": 0.3}, "f_divergence is reverse_kl"),
        ({"variant": ("plackett_luce",), "ld_alpha": 0.5}, "ld_alpha cuts"),
        ({"sync_alpha": 0.5}, "sync_every is 0"),
        ({"beta": -0.1}, "beta: got -0.1"),
        ({"f_divergence": "jss"}, "Did you mean js"),
    ],
)
def test_what_cannot_be_used_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DPO(**fields)
