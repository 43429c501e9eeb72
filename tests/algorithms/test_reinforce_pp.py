"""REINFORCE++ by hand: rewards to go, whitened over all tokens of a step."""

import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from batches import batch_of
from enumerated import TREES, WIDE, Expectation, Tree, gap, table_of
from espalier.algorithms.reinforce_pp import ReinforcePP
from espalier.errors import ConfigError
from losses_by_hand import value, wide
from samples import Groups, sample

BETA = 0.5


def rolled() -> Groups:
    """Rewards 1 and 0 to one prompt, 1 to another; old less reference 0.5, 0.5; 1; 2, junk before."""
    groups = [[sample([5], [6, 7], reward=1.0), sample([5], [8], reward=0.0)], [sample([9], [8], reward=1.0, group=1)]]
    for s, old, ref in zip(
        (s for group in groups for s in group),
        ([-1.0, -1.0], [-2.0], [-1.0]),
        ([-1.5, -1.5], [-3.0], [-3.0]),
        strict=True,
    ):
        s.streams["old_logprobs"], s.streams["ref_logprobs"] = [1e6, *old], [-1e6, *ref]
    return groups


def credited(algorithm: ReinforcePP) -> list[float]:
    groups = rolled()
    assert algorithm.credit(groups, {"max_tokens": 4.0}) == {"max_tokens": 4.0}
    assert all(s.streams["advantages"][0] == 0 for group in groups for s in group)
    return [A for group in groups for s in group for A in s.streams["advantages"][1:]]


def whitened(numbers: list[float]) -> list[float]:
    center, spread = statistics.fmean(numbers), math.sqrt(statistics.pvariance(numbers) + 1e-8)
    return [(x - center) / spread for x in numbers]


def test_rewards_to_go_are_whitened_over_all_tokens() -> None:
    """Beta 0.1: 0.9, 0.95, -0.1, 0.8; mean 0.6375, variance 0.736875 / 4."""
    advantages = credited(ReinforcePP(beta=0.1))
    assert advantages == pytest.approx(whitened([0.9, 0.95, -0.1, 0.8]))
    assert advantages == pytest.approx([0.61159, 0.72809, -1.71828, 0.37861], abs=1e-5)


def test_without_a_kl_rewards_are_whitened() -> None:
    """1, 1, 0, 1: mean 3/4, variance 3/16; with the KL in the loss, too."""
    third = 1 / math.sqrt(3)
    for algorithm in (ReinforcePP(), ReinforcePP(beta=0.1, kl_in="loss")):
        assert credited(algorithm) == pytest.approx([third, third, -3 * third, third], abs=1e-6)


def test_the_group_s_mean_is_taken_before_the_whitening_and_no_kl() -> None:
    """0.5, 0.5, -0.5 and 0 for an answer alone: mean 1/8, mean of squares 3/16."""
    spread = math.sqrt(3 / 16 - 1 / 64 + 1e-8)
    expected = [(x - 1 / 8) / spread for x in (0.5, 0.5, -0.5, 0.0)]
    for algorithm in (ReinforcePP(beta=0.1, baseline="group"), ReinforcePP(baseline="group")):
        assert credited(algorithm) == pytest.approx(expected)


def test_equal_rewards_have_advantages_of_exactly_zero() -> None:
    groups = [[sample([5], [6, 7], reward=0.1)] for _ in range(3)]
    ReinforcePP().credit(groups, {})
    assert all(g[0].streams["advantages"] == [0, 0, 0] for g in groups)


def test_cut_answers_stay_in_the_mean_and_lose_their_weight() -> None:
    groups = [[sample([5], [6], reward=1.0)], [sample([5], [7], reward=0.0, stop="length")]]
    ReinforcePP(mask_cut=True).credit(groups, {})
    assert groups[0][0].streams["advantages"] == pytest.approx([0, 1])
    assert groups[1][0].weights == [0, 0]


def test_every_token_weighs_the_same_and_k2_stands_in_the_loss() -> None:
    """Ratios 1.5 and 1 at A = 1, -2; log-ratios to the reference log 1.5 + 0.5 and 0.2, k2 of each half the square."""
    streams = {"advantages": wide([1, -2]), "old_logprobs": wide([-1, -1]), "ref_logprobs": wide([-1.5, -1.2])}
    logprobs = [-1 + math.log(1.5), -1]
    loss, slope, _ = value(ReinforcePP(beta=0.1), logprobs, batch_of([1, 1], streams=streams))
    assert loss == pytest.approx((-1.2 + 2) / 2)
    assert slope == pytest.approx([0, 1])
    loss, slope, shares = value(ReinforcePP(beta=0.1, baseline="group"), logprobs, batch_of([1, 1], streams=streams))
    k1 = [math.log(1.5) + 0.5, 0.2]
    assert shares["kl_loss"] == pytest.approx(sum(x * x / 2 for x in k1) / 2)
    assert loss == pytest.approx((-1.2 + 2) / 2 + 0.1 * shares["kl_loss"])
    assert slope == pytest.approx([0.1 * k1[0] / 2, 1 + 0.1 * k1[1] / 2])


# ------------------------------------------------------------------------------------------------------- where it rests


def by_hand(tree: Tree, theta: Tensor, count: int) -> Tensor:
    """The expected gradient of one update, [prefixes, V - 1]: over all rollouts of `count` answers, - A_t times the
    derivative of log pi(y_t) in the logits, which is 1 for the token less the probabilities."""
    logp_ND = tree.logprobs(theta)
    ratios = (logp_ND - tree.ref_ND).tolist()
    p_N = logp_ND.sum(1).exp().tolist()
    to_go = [[r - BETA * sum(x[d:]) for d in range(tree.depth)] for r, x in zip(tree.R_N.tolist(), ratios, strict=True)]
    logits = torch.cat([theta, torch.zeros_like(theta[:, :1])], 1)
    choice = logits.softmax(1).tolist()
    out = [[0.0] * tree.tokens for _ in tree.prefixes]
    for draw in itertools.product(range(len(p_N)), repeat=count):
        weight = math.prod(p_N[n] for n in draw) / (count * tree.depth)
        tokens = [x for n in draw for x in to_go[n]]
        advantages = whitened(tokens) if len(set(tokens)) > 1 else [0.0] * len(tokens)
        for place, A in enumerate(advantages):
            y = tree.sequences[draw[place // tree.depth]]
            row, token = tree.prefixes.index(y[: place % tree.depth]), y[place % tree.depth]
            for v in range(tree.tokens):
                out[row][v] -= weight * A * ((v == token) - choice[row][v])
    return torch.tensor(out, dtype=WIDE)[:, :-1]


@pytest.mark.parametrize("name", TREES)
def test_the_expected_gradient_is_that_of_the_formula(name: str) -> None:
    tree = TREES[name]
    theta = tree.start() + 0.3
    got = Expectation(tree, ReinforcePP(beta=BETA), 2).gradient(theta)
    assert got.abs().max() > 1e-2
    assert (got - by_hand(tree, theta, 2)).abs().max() < 1e-12


def descend(expected: Expectation, steps: int, slower: float) -> Tensor:
    """The policy that gradient steps from the reference lead to, [N]."""
    theta = expected.tree.start()
    for step in range(steps):
        theta = theta - 2.0 / (1 + step / slower) * expected.gradient(theta)
    return expected.tree.policy(theta)


@pytest.mark.parametrize("count", [2, 3])
def test_on_answers_of_one_token_the_best_policy_is_at_rest(count: int) -> None:
    """There all rewards less their KL are equal, so nothing is left to whiten."""
    tree = TREES["bandit"]
    expected = Expectation(tree, ReinforcePP(beta=BETA), count)
    assert expected.gradient(table_of(tree, tree.best(BETA))).abs().max() < 1e-8
    assert gap(descend(expected, 400, 5.0), tree.best(BETA)) < 0.005


@pytest.mark.parametrize(("count", "distance"), [(2, 0.083), (3, 0.028), (4, 0.017)])
def test_on_longer_answers_few_of_them_rest_beside_it(count: int, distance: float) -> None:
    """The mean and the std of a step hold the answer's own later tokens, whose KL follows from its first; the share of
    that falls with the number of answers."""
    tree = TREES["two tokens"]
    expected = Expectation(tree, ReinforcePP(beta=BETA), count)
    assert gap(descend(expected, 100, 20.0), tree.best(BETA)) == pytest.approx(distance, abs=1e-3)


def test_with_the_group_s_mean_it_rests_at_a_place_of_its_own() -> None:
    """pi ~ ref exp(A / beta), A the expected advantage under pi itself: +1 for the better one of two, -1 for the
    other."""
    tree = TREES["bandit"]
    policy = tree.policy(Expectation(tree, ReinforcePP(beta=BETA, baseline="group"), 2).fixed_point())
    expected = [0.0] * len(policy)
    for arm, r in enumerate(tree.R_N.tolist()):
        for other, p in enumerate(policy.tolist()):
            expected[arm] += p * whitened([r, tree.R_N.tolist()[other]])[0] if r != tree.R_N[other] else 0.0
    own = (tree.ref_ND[:, 0] + torch.tensor(expected, dtype=WIDE) / BETA).softmax(0)
    assert gap(policy, own) < 1e-8
    assert gap(policy, tree.best(BETA)) == pytest.approx(0.110, abs=5e-4)


# --------------------------------------------------------------------------------------------------------------- traits


def test_traits() -> None:
    online, of_group = ReinforcePP().traits.online, ReinforcePP(baseline="group", beta=0.1).traits.online
    assert online is not None and of_group is not None
    assert (online.least_group, online.least_step, online.always) == (1, 2, False)
    assert (of_group.least_group, of_group.always) == (2, True)
    assert ReinforcePP(beta=0.1).traits.needs == ("ref_logprobs", "old_logprobs")
    assert ReinforcePP(beta=0.1, baseline="group").traits.needs == ("ref_logprobs",)
    assert ReinforcePP().keep([sample([5], [6], reward=1.0)]) == "keep"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "group", "beta": 0.1, "kl_in": "loss"}, "with baseline group the KL is k2 in the loss"),
        ({"beta": 0.1, "kl_gradient": "naive"}, "kl_in is reward; drop one"),
    ],
)
def test_settings_that_do_nothing_are_refused_with_the_way_out(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReinforcePP(**settings)
