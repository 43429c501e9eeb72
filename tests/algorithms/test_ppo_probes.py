"""Small worlds whose values and best policy are known: a tiny actor and a tiny critic, drawn from with a plain sampler
and trained by the updates of the loop."""

import math
import random
from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from espalier.algorithms.ppo import PPO
from espalier.algorithms.reinforce import Reinforce
from espalier.algorithms.traits import Algorithm
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.protocols import Roles
from espalier.loop.annotate import annotate
from espalier.loop.step import make_updates
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Batch, Draw, Outputs, Sample
from learners import learner
from plain_sampler import draw, next_logprobs
from samples import Groups, sample
from tiny import tiny_model

VOCAB, STOP, COUNT, LIMIT = 12, 2, 16, 4
PROMPTS = [[4, 5], [6, 7], [8, 9], [10, 11]]
ONE_UPDATE: dict[str, Any] = {"beta": 0.0, "minibatches": 1, "value_clip": 0.0}
Reward = Callable[[Sample, random.Random], float]
QUICK = 3


def seeds(count: int = 20) -> list[object]:
    return [pytest.param(seed, marks=[] if seed < QUICK else pytest.mark.slow) for seed in range(count)]


def model_of(seed: int) -> dict[str, Any]:
    return {"seed": seed, "vocab_size": VOCAB, "initializer_range": 0.1}


def made(seed: int) -> Roles:
    """An actor and a critic of its own whose head says 0."""
    optim = OptimConfig(beta2=0.9, weight_decay=0.0)
    model = tiny_model("llama", **model_of(seed))
    heads.attach_value(model)
    critic = TorchLearner(Policy(model, "forest", says="values"), optim, LearnerOptions())
    actor = learner("llama", dtype=torch.float32, optim=optim, model=model_of(seed))
    return Roles(actor, critic)


def answer(s: Sample) -> list[int]:
    return [token for token, trained in zip(s.tokens, s.mask, strict=True) if trained]


def rolled(roles: Roles, reward: Reward, limit: int, seed: int, count: int = COUNT) -> Groups:
    """Graded answers to all prompts under the policy as it is."""
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    actor: Any = roles.policy
    groups = draw(actor.policy.model, PROMPTS, count, limit=limit, stop=STOP, noise=noise)
    for s in (s for group in groups for s in group):
        s.streams.clear()
        s.reward = reward(s, rng)
    return groups


def train(
    roles: Roles,
    algorithm: Algorithm,
    groups: Callable[[int], Groups],
    *,
    steps: int,
    lr: float = 0.006,
    critic_lr: float = 0.01,
    policy: bool = True,
) -> None:
    """The critic's rate falls to 0 in a line."""
    state: dict[str, float] = {}
    for step in range(steps):
        falling = critic_lr * (1 - step / steps)
        drawn = groups(step)
        state = annotate(drawn, algorithm, roles, state)
        make_updates(
            roles, algorithm, Draw(drawn, [], {}, []), state, step=step, seed=0, lr=lr, critic_lr=falling,
            train_policy=policy,
        )  # fmt: skip


def learn(roles: Roles, algorithm: Algorithm, reward: Reward, limit: int, seed: int, steps: int, **rates: Any) -> None:
    train(roles, algorithm, lambda step: rolled(roles, reward, limit, 1000 * seed + step), steps=steps, **rates)


def mean_reward(roles: Roles, reward: Reward, limit: int) -> float:
    return fmean(s.reward or 0.0 for group in rolled(roles, reward, limit, 7, count=32) for s in group)


def values_of(roles: Roles, answers: Groups) -> list[list[float]]:
    """The critic's values before the tokens of each answer."""
    assert roles.critic is not None
    outputs = roles.critic.say(answers, ["values"])
    every = [s for group in answers for s in group]
    return [
        [v for v, trained in zip(said.values, s.mask, strict=True) if trained]
        for s, said in zip(every, outputs, strict=True)
    ]


# -------------------------------------------------------------------------------------------------------- the critic


def forced(tokens: list[int], reward: Callable[[list[int]], float]) -> Groups:
    return [[sample(prompt, tokens, reward=reward(prompt), group=n)] for n, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("seed", seeds())
def test_a_critic_learns_the_one_reward_that_there_is(seed: int) -> None:
    roles = made(seed)
    assert values_of(roles, forced([7], lambda _: 0.6)) == [[0.0]] * 4
    train(roles, PPO(**ONE_UPDATE), lambda _: forced([7], lambda _: 0.6), steps=80, policy=False)
    assert [v for (v,) in values_of(roles, forced([7], lambda _: 0.6))] == pytest.approx([0.6] * 4, abs=0.03)


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("seed", seeds())
def test_a_critic_tells_prompts_apart(seed: int, clip: float) -> None:
    """Also if a value may move by 0.2 a step alone: there are steps enough."""

    def groups(_: int) -> Groups:
        return forced([7], lambda prompt: 1.0 if prompt[0] in (4, 8) else -0.5)

    roles = made(seed)
    train(roles, PPO(**{**ONE_UPDATE, "value_clip": clip}), groups, steps=80, policy=False)
    assert [v for (v,) in values_of(roles, groups(0))] == pytest.approx([1, -0.5, 1, -0.5], abs=0.1)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, 120),
        ({"lam": 0.0}, 200),  # its own values come step by step
        pytest.param({"lam": 1.0}, 120, marks=pytest.mark.slow),
        pytest.param({"returns": "monte_carlo"}, 120, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("seed", seeds())
def test_a_value_one_token_earlier_is_discounted_once_more(seed: int, fields: dict[str, Any], steps: int) -> None:
    """Reward 1 behind the third token, gamma 0.5: a quarter, a half, one; at lam 0 by way of its own values."""
    roles = made(seed)
    groups = forced([7, 8, 9], lambda _: 1.0)
    algorithm = PPO(**ONE_UPDATE, gamma=0.5, **fields)
    train(roles, algorithm, lambda _: forced([7, 8, 9], lambda _: 1.0), steps=steps, policy=False)
    for of_answer in values_of(roles, groups):
        assert of_answer == pytest.approx([0.25, 0.5, 1.0], abs=0.06)


# ---------------------------------------------------------------------------------------------------------- the actor


def one_token(s: Sample, _: random.Random) -> float:
    return float(answer(s)[0] == 7)


def two_tokens(s: Sample, _: random.Random) -> float:
    """1 for an answer that ends with its second token, a half with its first or third, 0 otherwise."""
    return max(0.0, 1 - abs(len(answer(s)) - 2) / 2) * (s.stop == "stop")


def chance(_: Sample, rng: random.Random) -> float:
    return rng.random()


@pytest.mark.parametrize("minibatches", [1, 4])
@pytest.mark.parametrize("seed", seeds())
def test_one_good_token(seed: int, minibatches: int) -> None:
    roles = made(seed)
    before = mean_reward(roles, one_token, 1)
    learn(roles, PPO(beta=0.0, minibatches=minibatches), one_token, 1, seed, steps=40)
    assert before < 0.3
    assert mean_reward(roles, one_token, 1) > 0.9


@pytest.mark.parametrize("seed", seeds())
def test_an_answer_that_ends_with_its_second_token(seed: int) -> None:
    roles = made(seed)
    before = mean_reward(roles, two_tokens, LIMIT)
    learn(roles, PPO(**ONE_UPDATE), two_tokens, LIMIT, seed, steps=100, lr=0.003)
    assert before < 0.5
    assert mean_reward(roles, two_tokens, LIMIT) > 0.9


def drift(seed: int) -> tuple[float, float]:
    """How much a random reward changes the probability of token 7 as the first token, and the mean length."""
    roles = made(seed)
    actor: Any = roles.policy

    def stand() -> tuple[float, float]:
        groups = rolled(roles, chance, LIMIT, 7, count=32)
        first = next_logprobs(actor.policy.model, PROMPTS).exp()[:, 7]
        return first.mean().item(), fmean(len(answer(s)) for group in groups for s in group)

    before = stand()
    learn(roles, PPO(**ONE_UPDATE), chance, LIMIT, seed, steps=6, lr=0.002)
    after = stand()
    return after[0] - before[0], after[1] - before[1]


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_random_reward_leads_nowhere(count: int) -> None:
    """The mean change is within 3 standard errors of 0."""
    for changes in zip(*(drift(seed) for seed in range(count)), strict=True):
        error = stdev(changes) / math.sqrt(count)
        assert error > 0
        assert abs(fmean(changes)) < 3 * error


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("seed", seeds())
def test_beside_a_critic_of_zeros_it_is_reinforce(seed: int, beta: float) -> None:
    """lam 1, nothing whitened, one update: the gradient is REINFORCE's without a baseline."""
    roles = made(seed)
    actor: Any = roles.policy
    ppo = PPO(beta=beta, minibatches=1, lam=1.0, whiten_advantages=False)
    reinforce = Reinforce(beta=beta, baseline="none")
    slopes = []
    for algorithm in (ppo, reinforce):

        def loss(outputs: Outputs, batch: Batch, algorithm: Any = algorithm) -> Any:
            return algorithm.loss(outputs, batch)

        groups = rolled(roles, two_tokens, LIMIT, seed)
        rng = random.Random(seed)
        for s in (s for group in groups for s in group):
            s.streams["ref_logprobs"] = [-2 - rng.random() for _ in s.tokens]
        # A reference of these numbers, in place of a model.
        needs = Roles(actor, roles.critic, Held())
        state = annotate(groups, algorithm, needs, {})
        actor.forward_backward(groups, loss, state, 0)
        slopes.append({name: p.grad.clone() for name, p in actor.optimizer.parameters().items()})
        actor.drop_gradient()
    largest = max(slope.abs().max() for slope in slopes[1].values())
    assert largest > 1e-4
    for name, slope in slopes[0].items():
        assert (slope - slopes[1][name]).abs().max() < 1e-6 * largest, name


class Held:
    """A reference that says what stands on the samples already."""

    def logprobs(self, groups: Any) -> list[list[float]]:
        return [s.streams["ref_logprobs"] for group in groups for s in group]
