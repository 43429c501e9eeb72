"""REINFORCE by hand: rewards to go, baselines, token sums."""

import math
from typing import Any

import pytest

from batches import batch_of
from enumerated import TREES, Expectation
from espalier.algorithms.reinforce import Reinforce
from espalier.errors import ConfigError
from espalier.outcomes import Outcome
from espalier.types import Sample
from losses_by_hand import value, wide
from samples import Groups, sample


def rolled() -> Groups:
    """Answers of two and one tokens to two prompts, rewards 1 and 0; old less reference 0.5, 0.5 and 1, junk before."""
    first, second = sample([5, 4], [6, 7], reward=1.0), sample([9], [8], reward=0.0, group=1)
    first.streams["old_logprobs"], first.streams["ref_logprobs"] = [1e6, -1e6, -1.0, -1.0], [-1e6, 1e6, -1.5, -1.5]
    second.streams["old_logprobs"], second.streams["ref_logprobs"] = [1e6, -2.0], [-1e6, -3.0]
    return [[first], [second]]


def credited(algorithm: Reinforce, state: dict[str, float] | None = None) -> tuple[list[float], dict[str, float]]:
    """The advantages at the trained tokens, and the new state."""
    groups = rolled()
    after = algorithm.credit(groups, state or {})
    streams = [s.streams["advantages"] for group in groups for s in group]
    assert streams[0][:2] == [0, 0] and streams[1][0] == 0
    return [*streams[0][2:], streams[1][1]], after


@pytest.mark.parametrize(
    ("settings", "advantages"),
    [
        # With beta 0.1 G is 1 - 0.1, 1 - 0.05 and 0 - 0.1.
        ({"beta": 0.1, "baseline": "none"}, [0.9, 0.95, -0.1]),
        ({"beta": 0.1}, [0.9 + 0.1, 0.95 + 0.1, -0.1 - 0.9]),
        ({"beta": 0.1, "kl_per": "answer"}, [0.9 + 0.1, 0.9 + 0.1, -0.1 - 0.9]),
        ({"beta": 0.1, "kl_in": "loss"}, [1, 1, -1]),
        ({"baseline": "none"}, [1, 1, 0]),
        ({}, [1, 1, -1]),
    ],
)
def test_advantages_are_rewards_to_go_less_the_baseline(settings: dict[str, Any], advantages: list[float]) -> None:
    assert credited(Reinforce(**settings))[0] == pytest.approx(advantages)


def test_the_moving_baseline_is_that_of_the_steps_before() -> None:
    """The first step compares with the other answers and has the mean 0.4; then 0.2 stays to 0.9."""
    algorithm = Reinforce(beta=0.1, baseline="moving")
    advantages, state = credited(algorithm, {"max_tokens": 4.0})
    assert advantages == pytest.approx([1.0, 1.05, -1.0])
    assert state == {"max_tokens": 4.0, "score_mean": pytest.approx(0.4)}
    advantages, state = credited(algorithm, {"score_mean": 0.2})
    assert advantages == pytest.approx([0.7, 0.75, -0.3])
    assert state == {"score_mean": pytest.approx(0.9 * 0.2 + 0.1 * 0.4)}
    assert credited(Reinforce(baseline="moving", baseline_decay=0.0), {"score_mean": 9.0})[1] == {"score_mean": 0.5}
    assert algorithm.credit([], {"score_mean": 0.2}) == {"score_mean": 0.2}


def test_an_answer_has_no_part_in_its_baseline() -> None:
    """Whatever it scores, the others' mean is taken from it: of 1, 2, 6 the means of others are 4, 3.5, 1.5."""
    groups = [[sample([5], [6], reward=score, group=n)] for n, score in enumerate((1.0, 2.0, 6.0))]
    Reinforce().credit(groups, {})
    assert [g[0].streams["advantages"][1] for g in groups] == [-3, -1.5, 4.5]


@pytest.mark.parametrize("baseline", ["moving", "batch"])
def test_equal_scores_have_advantages_of_exactly_zero(baseline: Any) -> None:
    """0.1 * 3 / 3 is not 0.1."""
    groups = [[sample([5], [6, 7], reward=0.1)] for _ in range(3)]
    Reinforce(baseline=baseline).credit(groups, {})
    assert all(g[0].streams["advantages"] == [0, 0, 0] for g in groups)


def test_scores_of_steps_count_up_to_their_end() -> None:
    """The score 1 at the end, 2 at the first token: 3, then 1; the other answer has 0."""
    groups = [[sample([5], [6, 7], reward=1.0)], [sample([5], [8], reward=0.0)]]
    groups[0][0].outcome = Outcome(1.0, steps=((0, 2.0),))
    Reinforce().credit(groups, {})
    assert [g[0].streams["advantages"] for g in groups] == [[0, 3, 1], [0, -3]]


def test_tokens_of_tools_have_no_advantage() -> None:
    s = Sample(reward=1.0)
    for tokens, trained in (([5], False), ([6], True), ([7], False), ([8], True)):
        s.append(tokens, trained=trained)
    Reinforce(baseline="none").credit([[s]], {})
    assert s.streams["advantages"] == [0, 1, 0, 1]


def test_cut_answers_stay_in_the_baseline_and_lose_their_weight() -> None:
    groups = [[sample([5], [6], reward=1.0)], [sample([5], [7], reward=0.0, stop="length")]]
    Reinforce(mask_cut=True).credit(groups, {})
    assert groups[0][0].streams["advantages"] == [0, 1]
    assert groups[1][0].weights == [0, 0]


def test_every_token_weighs_the_same_and_ratios_are_clipped() -> None:
    """Ratios 1.1, 1.5 and 1 at A = 1, 1, -2 over three tokens."""
    streams = {"advantages": wide([1, 1, -2]), "old_logprobs": wide([-1, -1, -1])}
    logprobs = [-1 + math.log(1.1), -1 + math.log(1.5), -1]
    loss, slope, shares = value(Reinforce(), logprobs, batch_of([2, 1], streams=streams))
    assert loss == pytest.approx((-1.1 - 1.2 + 2) / 3)
    assert slope == pytest.approx([-1.1 / 3, 0, 2 / 3])
    assert "score_mean" not in shares
    batch = batch_of([2, 1], streams=streams, weights=wide([1, 0, 1]), state={"score_mean": 0.25})
    loss, slope, shares = value(Reinforce(baseline="moving"), [-1, -1, -1], batch)
    assert loss == pytest.approx((-1 + 2) / 2)
    assert slope == pytest.approx([-1 / 2, 0, 1])
    assert shares["score_mean"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("algorithm", "group", "state"),
    [
        (Reinforce(beta=0.5, baseline="none"), 1, {}),
        (Reinforce(beta=0.5, baseline="moving"), 1, {"score_mean": 3.0}),
        (Reinforce(beta=0.5), 2, {}),
        (Reinforce(beta=0.5, kl_per="answer"), 2, {}),
        (Reinforce(beta=0.5, baseline="moving"), 2, {}),
        (Reinforce(beta=0.5, baseline="none", old="sampler"), 2, {}),
    ],
)
@pytest.mark.parametrize("name", TREES)
def test_the_expected_gradient_is_that_of_the_objective(
    name: str, algorithm: Reinforce, group: int, state: dict[str, float]
) -> None:
    """Of -(E[R] - beta KL(pi || ref)) a token, away from its optimum, by enumeration: no baseline moves it."""
    tree = TREES[name]
    theta = (tree.start() + 0.3).requires_grad_()
    logp_N = tree.logprobs(theta).sum(1)
    objective = logp_N.exp() @ (tree.R_N - 0.5 * (logp_N - tree.ref_ND.sum(1)))
    objective.backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None and theta.grad.abs().max() > 1e-2
    got = Expectation(tree, algorithm, group, state).gradient(theta.detach())
    assert (got + theta.grad / tree.depth).abs().max() < 1e-12


def test_traits() -> None:
    online = Reinforce().traits.online
    assert online is not None
    assert (online.least_group, online.least_step) == (1, 2)
    assert Reinforce().traits.needs == ()
    assert Reinforce(beta=0.1).traits.needs == ("ref_logprobs", "old_logprobs")
    assert Reinforce().keep([sample([5], [6], reward=1.0)]) == "keep"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_per": "answer"}, "kl_per is about the KL in the reward, and there is none; drop kl_per"),
        ({"kl_per": "answer", "beta": 0.1, "kl_in": "loss"}, "kl_per is about the KL in the reward"),
        ({"baseline_decay": 0.5}, "baseline_decay is for baseline moving, and it is batch; drop one"),
        ({"kl_gradient": "naive"}, "kl_gradient is given, but beta is 0"),
    ],
)
def test_settings_that_do_nothing_are_refused_with_the_way_out(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Reinforce(**settings)
