"""The policies at which training rests, on the policy's own draws with one update a rollout, by exact enumeration.

docs/policy-losses.md has the same table. Every algorithm is held to a policy in closed form: the gradient of its own
loss vanishes there (1e-8), and gradient steps from the reference lead there (total variation 0.005).
"""

import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from enumerated import TREES, Expectation, Tree, gap, hyperbola, softly, table_of
from espalier.algorithms.dapo import DAPO
from espalier.algorithms.dr_grpo import DrGRPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.gspo import GSPO
from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.reinforce import Reinforce
from espalier.algorithms.rloo import RLOO

BETA = 0.5
EXACT: dict[str, Any] = {"beta": BETA, "scale": "none"}
LOSS: dict[str, Any] = {"beta": BETA, "kl_in": "loss"}
NAIVE_K2: dict[str, Any] = {"kl": "k2", "kl_gradient": "naive"}
Claim = Callable[[Tree], Tensor]


def best(beta: float = BETA) -> Claim:
    """pi* ~ ref exp(R / beta) over sequences."""
    return lambda tree: tree.best(beta)


def token_wise(beta: float = BETA) -> Claim:
    """ref exp(Q / beta) after every prefix; on a bandit it is pi*."""
    return lambda tree: tree.by_tokens(softly(beta))


def inverse(beta: float = BETA) -> Claim:
    """beta ref / (c - Q) after every prefix."""
    return lambda tree: tree.by_tokens(hyperbola(beta))


# What trains; answers to a prompt (0: exact advantages); where it rests; how far that is from pi* in each of TREES.
CASES: dict[str, tuple[OnPolicy, int, Claim, tuple[float, ...]]] = {
    "reward, exact": (GRPO(**EXACT, kl_in="reward"), 0, best(), (0, 0, 0)),
    "reward, rloo 2": (RLOO(beta=BETA), 2, best(), (0, 0, 0)),
    "reward, dr_grpo 2": (DrGRPO(beta=BETA, kl_in="reward"), 2, best(), (0, 0, 0)),
    "to go, reinforce none": (Reinforce(beta=BETA, baseline="none"), 1, best(), (0, 0, 0)),
    "to go, reinforce batch 2": (Reinforce(beta=BETA), 2, best(), (0, 0, 0)),
    "reward, reinforce batch 2": (Reinforce(beta=BETA, kl_per="answer"), 2, best(), (0, 0, 0)),
    "sequence, exact": (GRPO(**EXACT, kl_gradient="sequence"), 0, best(), (0, 0, 0)),
    "sequence, rloo 2": (RLOO(**LOSS, kl_gradient="sequence"), 2, best(), (0, 0, 0)),
    "token k3, exact": (GRPO(**EXACT), 0, token_wise(), (0, 0.065, 0.055)),
    "token k1, exact": (GRPO(**EXACT, kl="k1"), 0, token_wise(), (0, 0.065, 0.055)),
    "naive k2, exact": (GRPO(**EXACT, **NAIVE_K2), 0, token_wise(), (0, 0.065, 0.055)),
    "token k3, rloo 2": (RLOO(**LOSS), 2, token_wise(), (0, 0.065, 0.055)),
    "token k3, reinforce batch 2": (Reinforce(**LOSS), 2, token_wise(), (0, 0.065, 0.055)),
    "naive k2, rloo 2": (RLOO(**LOSS, **NAIVE_K2), 2, token_wise(), (0, 0.065, 0.055)),
    "naive k3, exact": (GRPO(**EXACT, kl_gradient="naive"), 0, inverse(), (0.052, 0.054, 0.081)),
    "token k3, dr_grpo 2": (DrGRPO(**LOSS), 2, token_wise(2 * BETA), (0.192, 0.130, 0.141)),
    "token k3, dr_grpo 4": (DrGRPO(**LOSS), 4, token_wise(4 / 3 * BETA), (0.097, 0.046)),
    "token k3, grpo without std 2": (GRPO(**EXACT), 2, token_wise(2 * BETA), (0.192, 0.130, 0.141)),
    "sequence, dr_grpo 2": (DrGRPO(**LOSS, kl_gradient="sequence"), 2, best(2 * BETA), (0.192, 0.149, 0.146)),
    "naive k3, dr_grpo 2": (DrGRPO(**LOSS, kl_gradient="naive"), 2, inverse(2 * BETA), (0.160, 0.150, 0.123)),
}
NUMBERED = [(name, number) for name, case in CASES.items() for number in range(len(case[3]))]
QUICK = (
    "reward, rloo 2",
    "to go, reinforce none",
    "to go, reinforce batch 2",
    "sequence, exact",
    "token k3, exact",
    "naive k3, exact",
    "token k3, dr_grpo 2",
)


@pytest.mark.parametrize(("name", "number"), NUMBERED)
def test_the_gradient_vanishes_at_the_policy_in_closed_form(name: str, number: int) -> None:
    algorithm, group, claim, distances = CASES[name]
    tree = list(TREES.values())[number]
    policy = claim(tree)
    assert Expectation(tree, algorithm, group).gradient(table_of(tree, policy)).abs().max() < 1e-8
    assert gap(policy, tree.best(BETA)) == pytest.approx(distances[number], abs=5e-4)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, marks=[] if name in QUICK and number < 2 else pytest.mark.slow)
        for name, number in NUMBERED
    ],
)
def test_gradient_steps_lead_there(name: str, number: int) -> None:
    algorithm, group, claim, _ = CASES[name]
    tree = list(TREES.values())[number]
    assert gap(tree.policy(Expectation(tree, algorithm, group).fixed_point()), claim(tree)) < 0.005


# ------------------------------------------------------------------------------------------------------- std of a group


def of_groups(tree: Tree, policy: Tensor, group: int) -> Tensor:
    """The expected advantage of each arm, by the formula: over all its siblings, (R - mean) / (std + 1e-4), [N]."""
    rewards, p = tree.R_N.tolist(), policy.tolist()
    arms = range(len(rewards))
    expected = [0.0 for _ in arms]
    for arm in arms:
        for others in itertools.product(arms, repeat=group - 1):
            scores = [rewards[arm], *(rewards[other] for other in others)]
            spread = statistics.stdev(scores) + 1e-4
            weight = math.prod(p[other] for other in others)
            expected[arm] += weight * (rewards[arm] - statistics.fmean(scores)) / spread
    return torch.tensor(expected, dtype=torch.float64)


@pytest.mark.parametrize(
    ("algorithm", "group", "distance"),
    [(GRPO(**LOSS), 2, 0.031), (GSPO(**LOSS), 2, 0.031), (DAPO(**LOSS, overlong_share=0), 2, 0.031),
     pytest.param(GRPO(**LOSS), 4, 0.266, marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_std_of_a_group_moves_it_to_a_place_of_its_own(algorithm: OnPolicy, group: int, distance: float) -> None:
    """There is no closed form, but pi ~ ref exp(A / beta) with A the expected advantage under pi itself."""
    tree = TREES["bandit"]
    policy = tree.policy(Expectation(tree, algorithm, group).fixed_point())
    own = (tree.ref_ND[:, 0] + of_groups(tree, policy, group) / BETA).softmax(0)
    assert gap(policy, own) < 1e-8
    assert gap(policy, tree.best(BETA)) == pytest.approx(distance, abs=5e-4)


@pytest.mark.parametrize("name", TREES)
def test_with_the_kl_in_the_reward_the_std_leaves_the_best_policy_at_rest(name: str) -> None:
    """There all scores less their KL are equal, so nothing is left to divide."""
    tree = TREES[name]
    gradient = Expectation(tree, GRPO(beta=BETA, kl_in="reward"), 2).gradient(table_of(tree, tree.best(BETA)))
    assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("name", TREES)
def test_naive_k1_does_not_see_beta(name: str) -> None:
    tree = TREES[name]
    table = tree.start() + 0.3
    with_kl, without = (
        Expectation(tree, algorithm).gradient(table)
        for algorithm in (GRPO(**EXACT, kl="k1", kl_gradient="naive"), GRPO(scale="none"))
    )
    assert torch.allclose(with_kl, without, atol=1e-14)
    assert without.abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------------- the docs


def test_the_docs_show_the_same_table() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "policy-losses.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    shown = {row[0].strip("`"): row[-3:] for row in rows if row[0].strip("`") in CASES}
    assert set(shown) == set(CASES)
    for name, cells in shown.items():
        distances = [f"{x:.3f}" if x else "0" for x in CASES[name][3]]
        assert cells[: len(distances)] == distances, name
