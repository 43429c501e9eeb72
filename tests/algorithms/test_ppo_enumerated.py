"""PPO on trees of which every sequence is enumerated, with a critic that is exact: the expected gradient of one update
is that of the objective, and training rests at its best policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from batches import batch_of
from enumerated import TREES, WIDE, Expectation, Tree, gap, table_of
from espalier.algorithms.ppo import PPO
from espalier.algorithms.reinforce import Reinforce
from espalier.types import Batch

BETA = 0.5
ONE_UPDATE: dict[str, Any] = {"beta": BETA, "whiten_advantages": False, "score_clip": 0.0, "minibatches": 1}


def exact_values(tree: Tree, logprobs_ND: Tensor, beta: float) -> Tensor:
    """What is to come after each prefix under the policy, its KL included, before each token of each sequence, [N, D]:

    V(x) = sum_y p(y | x) ( R(y) - beta sum_{t >= |x|} log p_t(y) / ref_t(y) )
    """
    kl_ND = beta * (logprobs_ND - tree.ref_ND)
    p_N = logprobs_ND.sum(1).exp()
    V_ND = torch.zeros_like(logprobs_ND)
    for n, y in enumerate(tree.sequences):
        for d in range(tree.depth):
            here = [m for m, other in enumerate(tree.sequences) if other[:d] == y[:d]]
            to_go = tree.R_N[here] - kl_ND[here, d:].sum(1)
            V_ND[n, d] = (p_N[here] / p_N[here].sum()) @ to_go
    return V_ND


class Actor(Expectation):
    """Every sequence is a rollout of its own, credited beside a critic that is exact, or says `constant` everywhere."""

    constant: float | None = None

    def _batch(self, logprobs_ND: Tensor, p_N: Tensor) -> Batch:
        V_ND = exact_values(self.tree, logprobs_ND, BETA)
        if self.constant is not None:
            V_ND = torch.full_like(V_ND, self.constant)
        made = [group[0] for group in self.samples]
        for n, s in enumerate(made):
            s.streams["old_logprobs"] = [0.0, *logprobs_ND[n].tolist()]
            s.streams["ref_logprobs"] = [0.0, *self.tree.ref_ND[n].tolist()]
            s.streams["values"] = [1e6, *V_ND[n].tolist()]
            self.algorithm.credit([[s]], {})
        self.returns_ND = torch.tensor([s.streams["returns"][1:] for s in made], dtype=WIDE)
        self.values_ND = V_ND
        A = torch.tensor([x for s in made for x in s.streams["advantages"][1:]], dtype=WIDE)
        streams = {"advantages": A, "ref_logprobs": self.tree.ref_ND.flatten(), "old_logprobs": logprobs_ND.flatten()}
        return batch_of([self.tree.depth] * len(made), streams=streams)


def with_constant(tree: Tree, algorithm: PPO, constant: float) -> Actor:
    actor = Actor(tree, algorithm)
    actor.constant = constant
    return actor


def objective_gradient(tree: Tree, theta: Tensor) -> Tensor:
    """Of E[R] - beta KL(pi || ref), a token."""
    leaf = theta.clone().requires_grad_()
    logp_N = tree.logprobs(leaf).sum(1)
    objective = logp_N.exp() @ (tree.R_N - BETA * (logp_N - tree.ref_ND.sum(1)))
    (slope,) = torch.autograd.grad(objective, leaf)
    return slope / tree.depth


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("name", TREES)
def test_beside_an_exact_critic_the_gradient_is_that_of_the_objective(name: str, lam: float) -> None:
    """Whatever lam is, away from the optimum: an exact critic has no bias."""
    tree = TREES[name]
    theta = tree.start() + 0.3
    expected = objective_gradient(tree, theta)
    assert expected.abs().max() > 1e-2
    got = Actor(tree, PPO(**ONE_UPDATE, lam=lam)).gradient(theta)
    assert (got + expected).abs().max() < 1e-12


@pytest.mark.parametrize("fields", [{}, {"kl_per": "answer"}])
@pytest.mark.parametrize("constant", [0.0, -3.0])
@pytest.mark.parametrize("name", TREES)
def test_at_lam_one_a_critic_that_knows_nothing_is_no_bias_either(
    name: str, constant: float, fields: dict[str, Any]
) -> None:
    """Its values are a baseline, of which lam 0 leaves a bias as soon as there is more than one token."""
    tree = TREES[name]
    theta = tree.start() + 0.3
    expected = objective_gradient(tree, theta)
    got = with_constant(tree, PPO(**ONE_UPDATE, lam=1.0, **fields), constant).gradient(theta)
    assert (got + expected).abs().max() < 1e-12
    biased = with_constant(tree, PPO(**ONE_UPDATE, lam=0.0, **fields), constant).gradient(theta)
    assert ((biased + expected).abs().max() < 1e-12) == (tree.depth == 1)


@pytest.mark.parametrize("name", TREES)
def test_without_values_it_is_reinforce_without_a_baseline(name: str) -> None:
    tree = TREES[name]
    theta = tree.start() - 0.2
    got = with_constant(tree, PPO(**ONE_UPDATE, lam=1.0), 0.0).gradient(theta)
    reinforce = Expectation(tree, Reinforce(beta=BETA, baseline="none"), 1).gradient(theta)
    assert (got - reinforce).abs().max() < 1e-14


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("name", TREES)
def test_what_the_critic_is_told_has_its_exact_values_for_a_mean(name: str, lam: float) -> None:
    """So an exact critic stays as it is."""
    tree = TREES[name]
    theta = tree.start() + 0.3
    actor = Actor(tree, PPO(**ONE_UPDATE, lam=lam))
    actor.gradient(theta)
    p_N = tree.policy(theta)
    for prefix in tree.prefixes:
        here = [n for n, y in enumerate(tree.sequences) if y[: len(prefix)] == prefix]
        weight = p_N[here] / p_N[here].sum()
        mean = weight @ actor.returns_ND[here, len(prefix)]
        assert mean.item() == pytest.approx(actor.values_ND[here[0], len(prefix)].item(), abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("name", TREES)
def test_the_best_policy_is_at_rest(name: str, lam: float) -> None:
    """pi* ~ ref exp(R / beta) over sequences. There nothing is better than expected, so every advantage is 0."""
    tree = TREES[name]
    actor = Actor(tree, PPO(**ONE_UPDATE, lam=lam))
    assert actor.gradient(table_of(tree, tree.best(BETA))).abs().max() < 1e-8
    assert (actor.returns_ND - actor.values_ND).abs().max() < 1e-8


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("name", ["bandit", "two tokens", pytest.param("three tokens", marks=pytest.mark.slow)])
def test_gradient_steps_lead_there(name: str, lam: float) -> None:
    tree = TREES[name]
    assert gap(tree.policy(Actor(tree, PPO(**ONE_UPDATE, lam=lam)).fixed_point()), tree.best(BETA)) < 0.005


@pytest.mark.parametrize("name", TREES)
def test_discounting_is_another_objective(name: str) -> None:
    """At gamma below 1 what comes later counts less, so only a single token is at rest where it was. With lam 1 values
    are a baseline alone."""
    tree = TREES[name]
    slope = Actor(tree, PPO(**ONE_UPDATE, gamma=0.5, lam=1.0)).gradient(table_of(tree, tree.best(BETA)))
    assert (slope.abs().max() < 1e-8) == (tree.depth == 1)
