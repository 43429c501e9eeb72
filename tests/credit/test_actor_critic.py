"""Rewards, advantages and returns of an actor with a critic: by hand and in closed form."""

import math
import random
import statistics
from typing import Any

import pytest

from espalier.algorithms.ppo import PPO
from espalier.credit import actor_critic, returns
from espalier.outcomes import Outcome
from espalier.types import Sample
from samples import sample

PLAIN: dict[str, Any] = {"whiten_advantages": False, "score_clip": 0.0}


def said(s: Sample, ratios: list[float], V: list[float]) -> Sample:
    """The sample with old less reference and values at its trained tokens, and junk elsewhere."""
    for name, numbers in (
        ("old_logprobs", [x - 1 for x in ratios]),
        ("ref_logprobs", [-1] * len(ratios)),
        ("values", V),
    ):
        left = list(numbers)
        junk = 1e6 if name == "old_logprobs" else -1e6
        s.streams[name] = [float(left.pop(0)) if t and m else junk for t, m in enumerate(s.mask)]
    return s


def three(**fields: Any) -> Sample:
    """Three tokens with k1 of 1, 2 and -1 nats and the values 2, 4 and 6."""
    fields.setdefault("reward", 3.0)
    return said(sample([5, 4], [6, 7, 8], **fields), [1, 2, -1], [2, 4, 6])


def with_tool(**fields: Any) -> Sample:
    """The same three tokens, with two of a tool between the second and the third."""
    s = Sample(reward=3.0, **fields)
    for tokens, trained in (([5, 4], False), ([6, 7], True), ([9, 9], False), ([8], True)):
        s.append(tokens, trained=trained)
    return said(s, [1, 2, -1], [2, 4, 6])


@pytest.mark.parametrize(
    ("fields", "rewards"),
    [
        ({}, [-0.5, -1, 0.5 + 3]),
        ({"kl_per": "answer"}, [0, 0, 3 - 0.5 * 2]),
        ({"kl_per": "mean"}, [0, 0, 3 - 0.5 * 2 / 3]),
        ({"kl_in": "loss"}, [0, 0, 3]),
        ({"beta": 0.0}, [0, 0, 3]),
        ({"score_at": "spread"}, [-0.5 + 1, -1 + 1, 0.5 + 1]),
        ({"score_at": "spread", "kl_per": "answer"}, [2 / 3, 2 / 3, 2 / 3]),
        ({"score_clip": 2.0}, [-0.5, -1, 0.5 + 2]),  # the KL is not clipped
        ({"score_clip": 2.0, "kl_per": "answer"}, [0, 0, 2 - 0.5 * 2]),
        ({"score_clip": 2.0, "score_at": "spread", "kl_in": "loss"}, [2 / 3, 2 / 3, 2 / 3]),
        ({"stop_penalty": 1.0}, [-0.5, -1, 0.5 + 3]),  # it has stopped
    ],
)
@pytest.mark.parametrize("tool", [False, True])
def test_what_tokens_earn_by_hand(tool: bool, fields: dict[str, Any], rewards: list[float]) -> None:
    """The score is 3, beta 0.5, k1 is 1, 2 and -1."""
    s = with_tool() if tool else three()
    settings = PPO(**{"beta": 0.5, **PLAIN, **fields})
    assert actor_critic.rewards_of(s, settings, settings.beta) == pytest.approx(rewards)


@pytest.mark.parametrize(("stop", "earned"), [("stop", 3.0), ("length", -0.75), ("error", -0.75)])
def test_an_answer_that_did_not_stop_has_the_penalty_for_a_score(stop: str, earned: float) -> None:
    settings = PPO(beta=0.0, **PLAIN, stop_penalty=0.75)
    assert actor_critic.rewards_of(three(stop=stop), settings, 0.0) == [0, 0, earned]
    clipped = PPO(beta=0.0, score_clip=0.5, stop_penalty=0.75)
    assert actor_critic.rewards_of(three(stop=stop), clipped, 0.0)[2] == math.copysign(0.5, earned)


def test_the_strength_of_the_step_counts_and_not_the_setting() -> None:
    assert actor_critic.rewards_of(three(), PPO(beta=0.5, **PLAIN), 2.0) == [-2, -4, 2 + 3]


def test_scores_of_steps_stand_where_they_end_and_are_not_clipped() -> None:
    """Places count all tokens behind the prompt: 3 is the tool's, and the second token earned what ends there."""
    s = three(outcome=Outcome(3.0, steps=((0, 8.0), (1, -1.0))))
    assert actor_critic.rewards_of(s, PPO(beta=0.0, score_clip=1.0), 0.0) == [8, -1, 1]
    s = with_tool(outcome=Outcome(3.0, steps=((3, 8.0), (4, -1.0))))
    assert actor_critic.rewards_of(s, PPO(beta=0.0, score_clip=1.0), 0.0) == [0, 8, 0]


def test_a_sample_without_a_reward_or_values_is_named() -> None:
    with pytest.raises(ValueError, match="a sample has no reward"):
        actor_critic.fill(PPO(beta=0.0), [sample([5], [6])], 0.0)
    with pytest.raises(ValueError, match="group 7, part 'main': has no values; fill them before credit is called"):
        actor_critic.fill(PPO(beta=0.0), [sample([5], [6], reward=1.0, group=7)], 0.0)


# ------------------------------------------------------------------------------------------------- advantages, returns


def filled(s: Sample, **fields: Any) -> tuple[list[float], list[float]]:
    """Advantages and returns at the trained tokens; those at others are 0."""
    settings = PPO(**{"beta": 0.5, **PLAIN, **fields})
    actor_critic.fill(settings, [s], settings.beta)
    out = []
    for name in ("advantages", "returns"):
        stream = s.streams[name]
        assert [x for x, trained in zip(stream, s.mask, strict=True) if not trained] == [0] * s.mask.count(False)
        out.append([x for x, trained in zip(stream, s.mask, strict=True) if trained])
    return out[0], out[1]


# Rewards -0.5, -1, 3.5 and values 2, 4, 6: d is -0.5 + 4 - 2, -1 + 6 - 4, 3.5 - 6 at gamma 1; at gamma 0.5
# -0.5 + 2 - 2, -1 + 3 - 4, 3.5 - 6.
BY_HAND: list[tuple[dict[str, Any], list[float], list[float]]] = [
    ({"lam": 1.0}, [2 - 2, 2.5 - 4, 3.5 - 6], [2, 2.5, 3.5]),
    ({"lam": 0.0}, [1.5, 1, -2.5], [3.5, 5, 3.5]),
    ({"lam": 0.5}, [1.5 + 0.5 * -0.25, 1 - 1.25, -2.5], [2 + 1.375, 4 - 0.25, 3.5]),
    ({"lam": 0.0, "gamma": 0.5}, [-0.5, -2, -2.5], [1.5, 2, 3.5]),
    ({"lam": 1.0, "gamma": 0.5}, [-0.125 - 2, 0.75 - 4, 3.5 - 6], [-0.125, 0.75, 3.5]),
    ({"lam": 0.5, "gamma": 0.5}, [-0.5 + 0.25 * -2.625, -2 - 0.625, -2.5], [2 - 1.15625, 4 - 2.625, 3.5]),
    ({"lam": 0.5, "returns": "monte_carlo"}, [1.375, -0.25, -2.5], [2, 2.5, 3.5]),
    ({"lam": 0.0, "gamma": 0.5, "returns": "monte_carlo"}, [-0.5, -2, -2.5], [-0.125, 0.75, 3.5]),
]


@pytest.mark.parametrize(("fields", "A", "R"), BY_HAND)
@pytest.mark.parametrize("tool", [False, True])
def test_advantages_and_returns_by_hand(tool: bool, fields: dict[str, Any], A: list[float], R: list[float]) -> None:
    """Tokens of a tool are no actions: neither a value nor a step of the discount."""
    got = filled(with_tool() if tool else three(), **fields)
    assert got == (pytest.approx(A), pytest.approx(R))


def test_a_value_behind_the_end_is_what_the_last_token_leads_to() -> None:
    """gamma 0.5, lam 0: the last difference is 3.5 + 0.5 x 10 - 6."""
    s = three(stop="length")
    s.streams["bootstrap"] = [1e6, 1e6, 1e6, 1e6, 10.0]
    assert filled(s, lam=0.0, gamma=0.5) == (pytest.approx([-0.5, -2, 2.5]), pytest.approx([1.5, 2, 8.5]))
    # The rewards to go have no place for it.
    assert filled(s, lam=0.0, gamma=0.5, returns="monte_carlo")[1] == pytest.approx([-0.125, 0.75, 3.5])


@pytest.mark.parametrize("seed", range(4))
def test_the_ends_of_lam_in_closed_form(seed: int) -> None:
    """lam 1: the return less the value, whatever later values are. lam 0: one reward and the next value."""
    rng = random.Random(seed)
    count, gamma = rng.randint(1, 9), rng.uniform(0.5, 1)
    ratios, V = ([rng.gauss(0, 1) for _ in range(count)] for _ in range(2))
    s = said(sample([5], list(range(6, 6 + count)), reward=rng.gauss(0, 2)), ratios, V)
    r = actor_critic.rewards_of(s, PPO(beta=0.3, **PLAIN), 0.3)
    G = [math.fsum(gamma ** (k - t) * r[k] for k in range(t, count)) for t in range(count)]
    A, R = filled(s, beta=0.3, lam=1.0, gamma=gamma)
    assert pytest.approx([g - v for g, v in zip(G, V, strict=True)], abs=1e-12) == A
    assert pytest.approx(G, abs=1e-12) == R
    A, R = filled(s, beta=0.3, lam=0.0, gamma=gamma)
    after = [x + gamma * v for x, v in zip(r, [*V[1:], 0.0], strict=True)]
    assert pytest.approx([x - v for x, v in zip(after, V, strict=True)]) == A
    assert pytest.approx(after) == R


def several(seed: int = 0, count: int = 5) -> list[Sample]:
    rng = random.Random(seed)
    made = []
    for group in range(count):
        size = rng.randint(1, 6)
        s = sample([5, 4], list(range(6, 6 + size)), reward=rng.gauss(0, 1), group=group)
        made.append(said(s, [rng.gauss(0, 1) for _ in range(size)], [rng.gauss(0, 1) for _ in range(size)]))
    return made


def at_actions(made: list[Sample], name: str) -> list[float]:
    return [x for s in made for x, trained in zip(s.streams[name], s.mask, strict=True) if trained]


def test_advantages_are_whitened_over_all_tokens_and_returns_are_not() -> None:
    plain, white = several(), several()
    numbers = actor_critic.fill(PPO(score_clip=0.0, whiten_advantages=False), plain, 0.05)
    assert actor_critic.fill(PPO(score_clip=0.0), white, 0.05) == numbers
    A = at_actions(plain, "advantages")
    center, spread = statistics.fmean(A), statistics.pstdev(A)
    assert numbers["advantage_std"] == pytest.approx(spread)
    expected = [(x - center) / math.sqrt(spread**2 + 1e-8) for x in A]
    assert at_actions(white, "advantages") == pytest.approx(expected, abs=1e-12)
    assert at_actions(white, "returns") == at_actions(plain, "returns")


def test_whitened_rewards_keep_their_mean_and_come_before_the_advantages() -> None:
    """Rewards 0 and 4 of two answers of a token each: mean 2, deviation 2, so 1 and 3; values 0.5 are taken."""
    made = [said(sample([5], [6], reward=score), [0], [0.5]) for score in (0.0, 4.0)]
    settings = PPO(beta=0.0, whiten_rewards=True, **PLAIN)
    numbers = actor_critic.fill(settings, made, 0.0)
    assert at_actions(made, "advantages") == pytest.approx([0.5, 2.5])
    assert at_actions(made, "returns") == pytest.approx([1, 3])
    assert numbers["reward_shaped"] == 2 and numbers["return_mean"] == pytest.approx(2)


def test_the_numbers_of_a_step_by_hand() -> None:
    """Two answers that earn 2 and 1, of three tokens and one; returns 2, 2.5, 3.5 and 1, values 2, 4, 6 and 0."""
    made = [three(), said(sample([5], [6], reward=1.0), [0], [0])]
    numbers = actor_critic.fill(PPO(beta=0.5, lam=1.0, **PLAIN), made, 0.5)
    R, V = [2, 2.5, 3.5, 1], [2, 4, 6, 0]
    gaps = [x - v for x, v in zip(R, V, strict=True)]
    assert numbers == pytest.approx(
        {
            "reward_shaped": 1.5,
            "value_mean": 3,
            "return_mean": 2.25,
            "advantage_std": statistics.pstdev(gaps),
            "explained_variance": 1 - statistics.pvariance(gaps) / statistics.pvariance(R),
        }
    )
    equal = actor_critic.fill(PPO(beta=0.0, **PLAIN), [three(), three()], 0.0)
    assert "explained_variance" in equal
    flat = said(sample([5], [6], reward=1.0), [0], [0.5])
    assert "explained_variance" not in actor_critic.fill(PPO(beta=0.0, **PLAIN), [flat], 0.0)


def test_explained_variance_by_hand() -> None:
    assert returns.explained_variance([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1
    assert returns.explained_variance([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]) == pytest.approx(1)  # a bias is no variance
    assert returns.explained_variance([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == pytest.approx(0)
    assert returns.explained_variance([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-3)
    assert returns.explained_variance([0.1] * 3, [1.0, 2.0, 3.0]) is None
    with pytest.raises(ValueError, match="got 1 values for 2 returns"):
        returns.explained_variance([0.0, 1.0], [0.5])


def test_steps_of_a_critic_that_is_worse_than_a_mean_are_counted() -> None:
    state: dict[str, float] = {}
    counts = []
    for numbers in ({"explained_variance": -0.1}, {"explained_variance": -2.0}, {}, {"explained_variance": -1.0}):
        state = actor_critic.moved(state, numbers)
        counts.append(state["unexplained"])
    assert counts == [1, 2, 0, 1]
    assert state["explained_variance"] == -1


def test_tokens_without_answers_and_no_answers_at_all() -> None:
    empty = said(sample([5, 6], [], reward=1.0), [], [])
    numbers = actor_critic.fill(PPO(beta=0.0), [empty], 0.0)
    assert empty.streams["advantages"] == [0, 0]
    assert actor_critic.fill(PPO(), [], 0.05) == {**numbers, "reward_shaped": 0}
