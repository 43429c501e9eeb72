"""Where preference losses end, by enumeration: a softmax over a handful of one-token answers, in fp64.

The policy has one logit an answer. Every ordered pair (or order) is in the batch; labels enter as its weight.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.algorithms.dpo import DPO
from espalier.forest.pack import pack, totals
from espalier.types import Outputs, Sample
from samples import sample

REWARDS = torch.tensor([1.0, 0.2, -0.5, 0.6, -1.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.3, 0.25, 0.15, 0.2], dtype=torch.float64)
K = len(REWARDS)
ORDERED = list(itertools.permutations(range(K), 2))


def answers(order: Sequence[int], *, labels: bool = False) -> list[Sample]:
    """One group: each of `order` is preferred to those after it, or has a label in that order."""
    group = []
    for place, y in enumerate(order):
        s = sample([K], [y], label=float(len(order) - place) if labels else None)
        s.beats = list(range(place + 1, len(order)))
        s.streams["ref_logprobs"] = [0.0, REFERENCE.log()[y].item()]
        group.append(s)
    return group


def optimum(algorithm: DPO, term: str, orders: Sequence[Sequence[int]], weights: Tensor, *, steps: int = 300) -> Tensor:
    """The policy where the weighted sum of the term over `orders` (a group each) is least."""
    groups = [answers(order, labels=term == "plackett_luce") for order in orders]
    batch = pack(groups, totals(groups))
    # pack keeps streams in float32, whose rounding is larger than what is measured here
    batch.streams["ref_logprobs"] = REFERENCE.log()[batch.targets_U[batch.score]]
    logits = REFERENCE.log().clone().requires_grad_()
    solver = torch.optim.LBFGS([logits], max_iter=steps, tolerance_grad=1e-13, tolerance_change=0, history_size=20,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        solver.zero_grad()
        logprobs = logits.log_softmax(0)[batch.targets_U[batch.score]]
        lost: Tensor = (algorithm.loss(Outputs(logprobs), batch)[term].x * weights).sum()
        lost.backward()  # type: ignore[no-untyped-call]
        return lost

    solver.step(closure)  # type: ignore[no-untyped-call]
    return logits.detach().softmax(0)


def best(beta: float) -> Tensor:
    """argmax of E r - beta KL(pi, ref): pi ~ ref exp(r / beta)."""
    return (REFERENCE.log() + REWARDS / beta).softmax(0)


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return 0.5 * (p - q).abs().sum().item()


def bradley_terry() -> Tensor:
    """P(a preferred to b) for each of ORDERED."""
    return torch.stack([torch.sigmoid(REWARDS[a] - REWARDS[b]) for a, b in ORDERED])


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_dpo_with_soft_labels_reaches_the_tilted_reference(beta: float) -> None:
    got = optimum(DPO(beta=beta), "sigmoid", ORDERED, bradley_terry())
    assert distance(got, best(beta)) < 1e-6
    assert distance(REFERENCE, best(beta)) > 0.1  # it had to move


def test_dpo_with_sampled_labels_reaches_the_tilted_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    draws, wins = 200_000, torch.zeros(len(ORDERED), dtype=torch.float64)
    for a, b in itertools.combinations(range(K), 2):
        first = torch.sigmoid(REWARDS[a] - REWARDS[b])
        count = (torch.rand(draws, generator=generator, dtype=torch.float64) < first).sum()
        wins[ORDERED.index((a, b))], wins[ORDERED.index((b, a))] = count, draws - count
    got = optimum(DPO(beta=1.0), "sigmoid", ORDERED, wins / draws)
    assert distance(got, best(1.0)) < 0.005


def test_dpo_with_hard_labels_does_not() -> None:
    """Every comparison won by the better answer: no finite margin is enough, and the best answer takes everything."""
    hard = torch.tensor([float(REWARDS[a] > REWARDS[b]) for a, b in ORDERED], dtype=torch.float64)
    got = optimum(DPO(beta=1.0), "sigmoid", ORDERED, hard, steps=1000)
    assert distance(got, best(1.0)) > 0.3
    assert got[0] > 0.99


def test_robust_dpo_with_flipped_labels_reaches_the_tilted_reference_and_plain_dpo_does_not() -> None:
    p = bradley_terry()
    flipped = 0.8 * p + 0.2 * (1 - p)
    robust = optimum(DPO(variant=("robust",), beta=1.0, label_smoothing=0.2), "robust", ORDERED, flipped)
    assert distance(robust, best(1.0)) < 1e-6
    assert distance(optimum(DPO(beta=1.0), "sigmoid", ORDERED, flipped), best(1.0)) > 0.05


def test_plackett_luce_over_all_orders_reaches_the_tilted_reference() -> None:
    orders = list(itertools.permutations(range(K), 3))  # every list of three, as often as its answers' strengths say
    likely = []
    for order in orders:
        left = [REWARDS[list(order[k:])] for k in range(3)]
        likely.append(torch.stack([s[0] - s.logsumexp(0) for s in left]).sum().exp())
    got = optimum(DPO(variant=("plackett_luce",), beta=0.7), "plackett_luce", orders, torch.stack(likely))
    assert distance(got, best(0.7)) < 1e-6


@pytest.mark.parametrize(
    ("fields", "derivative", "inverse"),
    [
        ({"f_divergence": "reverse_kl"}, torch.log, torch.exp),
        ({"f_divergence": "js"}, lambda u: torch.log(2 * u / (1 + u)), lambda y: y.exp() / (2 - y.exp())),
        (
            {"f_divergence": "alpha", "divergence_alpha": 0.5},
            lambda u: 2 * (1 - u**-0.5),
            lambda y: (1 - y / 2) ** -2,
        ),
        ({"f_divergence": "alpha", "divergence_alpha": 1.0}, lambda u: 1 - 1 / u, lambda y: 1 / (1 - y)),
    ],
)
def test_divergences_reach_their_own_optimum(
    fields: dict[str, Any], derivative: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]
) -> None:
    """argmax of E r - beta D_f(pi, ref): pi = ref f'^-1((r - c) / beta), c by bisection so that pi sums to 1."""
    beta = 1.5

    def policy(c: float) -> Tensor:
        y = ((REWARDS - c) / beta).clamp(max=limit - 1e-12)
        return REFERENCE * inverse(y)

    limit = derivative(torch.tensor(1e30, dtype=torch.float64)).item()
    low, high = -20.0, 20.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if policy(middle).sum() > 1 else (low, middle)
    want = policy(high)
    assert want.sum().item() == pytest.approx(1, abs=1e-9)
    got = optimum(DPO(beta=beta, **fields), "sigmoid", ORDERED, bradley_terry())
    assert distance(got, want) < 1e-6
    if fields["f_divergence"] == "reverse_kl":
        assert distance(want, best(beta)) < 1e-9
    else:
        assert distance(want, best(beta)) > 0.005


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_ipo_stops_at_its_target_margin(tau: float) -> None:
    """Hard labels on one pair: log-ratio gap 1 / (2 tau), where DPO's grows without end."""
    got = optimum(DPO(variant=("ipo",), beta=tau), "ipo", [(0, 1)], torch.ones(1, dtype=torch.float64))
    ratio = (got / REFERENCE).log()
    assert (ratio[0] - ratio[1]).item() == pytest.approx(1 / (2 * tau), rel=1e-9)


@pytest.mark.parametrize("average", [True, False])
def test_ipo_with_soft_labels_weighs_its_target_by_their_certainty(average: bool) -> None:
    """One pair of which p goes one way: the least of p (h - c)^2 + (1 - p) (h + c)^2 is h = (2 p - 1) c."""
    p, tau = 0.8, 0.5
    weights = torch.tensor([p, 1 - p], dtype=torch.float64)
    got = optimum(DPO(variant=("ipo",), beta=tau, ipo_average=average), "ipo", [(0, 1), (1, 0)], weights)
    ratio = (got / REFERENCE).log()
    assert (ratio[0] - ratio[1]).item() == pytest.approx((2 * p - 1) / (2 * tau), rel=1e-9)


def test_ipo_reaches_its_margin_a_token_or_a_sum() -> None:
    """Answers of two and three tokens, a logit for each token."""
    group = [sample([0], [1, 2], beats=[1]), sample([0], [3, 4, 5])]
    for s in group:
        s.streams["ref_logprobs"] = [-1.0] * len(s)
    batch = pack([group], totals([group]))
    for average in (True, False):
        algorithm = DPO(variant=("ipo",), beta=0.25, ipo_average=average)
        logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([logits], tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe")

        def closure(algorithm: DPO = algorithm, logits: Tensor = logits, solver: Any = solver) -> Tensor:
            solver.zero_grad()
            logprobs = torch.nn.functional.logsigmoid(logits)
            lost: Tensor = algorithm.loss(Outputs(logprobs), batch)["ipo"].x.sum()
            lost.backward()  # type: ignore[no-untyped-call]
            return lost

        solver.step(closure)  # type: ignore[no-untyped-call]
        ratio = torch.nn.functional.logsigmoid(logits.detach()) + 1
        chosen, rejected = ratio[:2], ratio[2:]
        gap = chosen.mean() - rejected.mean() if average else chosen.sum() - rejected.sum()
        assert gap.item() == pytest.approx(2.0, rel=1e-6)


def test_conservative_dpo_stops_at_the_log_odds_of_its_labels() -> None:
    got = optimum(DPO(beta=0.5, label_smoothing=0.1), "sigmoid", [(0, 1)], torch.ones(1, dtype=torch.float64))
    ratio = (got / REFERENCE).log()
    assert 0.5 * (ratio[0] - ratio[1]).item() == pytest.approx(math.log(9), rel=1e-6)
