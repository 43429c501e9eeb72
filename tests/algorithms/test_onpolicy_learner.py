"""Algorithms over rollouts through the learner: micro-batches, masked tokens, masked answers."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.algorithms.dapo import DAPO
from espalier.algorithms.dr_grpo import DrGRPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.gspo import GSPO
from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.reinforce import Reinforce
from espalier.algorithms.reinforce_pp import ReinforcePP
from espalier.algorithms.rloo import RLOO
from espalier.engines.learner import TorchLearner
from espalier.outcomes import Outcome
from espalier.types import Batch, Outputs, Sample
from learners import learner, values
from samples import Groups, sample

STATE = {"max_tokens": 16.0}
KL = {"beta": 0.3, "kl_in": "loss", "rollout_epochs": 2}
CASES: dict[str, OnPolicy] = {
    "grpo": GRPO(),
    "token": GRPO(**KL),
    "naive": GRPO(**KL, kl="k2", kl_gradient="naive"),
    "sequence": GRPO(**KL, kl_gradient="sequence"),
    "dr_grpo": DrGRPO(**KL),
    "rloo": RLOO(**KL),
    "dapo": DAPO(**KL),
    "gspo": GSPO(**KL, clip_low=0.2, clip_high=0.2),
    "reinforce": Reinforce(beta=0.3, rollout_epochs=2),
    "reinforce, KL in the loss": Reinforce(**KL, baseline="none"),
    "reinforce_pp": ReinforcePP(beta=0.3, rollout_epochs=2),
    "reinforce_pp, group": ReinforcePP(beta=0.3, rollout_epochs=2, baseline="group"),
    "product": GSPO(length_normalised=False, token_form=True, clip_low=0.9, clip_high=9.0),
}


def rolled(algorithm: OnPolicy, seed: int = 0) -> Groups:
    """Graded answers of 1 to 16 tokens to three prompts that are shared, the last answer cut; streams as needed."""
    rng = random.Random(seed)
    groups = []
    for number in range(3):
        prompt = [rng.randrange(5, 128) for _ in range(20)]
        answers = [[rng.randrange(5, 128) for _ in range(rng.randint(1, 16))] for _ in range(4)]
        groups.append([sample(prompt, y, group=number, reward=rng.random(), key=number) for y in answers])
    groups[-1][-1].stop = "length"
    for s in (s for group in groups for s in group):
        for name in algorithm.traits.needs:
            s.streams[name] = [-4 - rng.random() for _ in s.tokens]
    assert algorithm.credit(groups, STATE) == STATE
    return groups


def one_step(made: TorchLearner, algorithm: OnPolicy, groups: Groups) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient, whose update is not made."""

    def loss(outputs: Outputs, batch: Batch) -> Any:
        return algorithm.loss(outputs, batch)

    result = made.forward_backward(groups, loss, STATE, 0)
    slopes = {n: p.grad.clone() for n, p in made.optimizer.parameters().items() if p.grad is not None}
    return result.loss, slopes


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str) -> None:
    algorithm = CASES[name]
    loss, slopes = one_step(learner(budget=100_000), algorithm, rolled(algorithm))
    split, of_split = one_step(learner(budget=40), algorithm, rolled(algorithm))
    assert split == pytest.approx(loss, abs=1e-12)
    scale = max(slope.abs().max() for slope in slopes.values())
    for key, slope in slopes.items():
        assert (of_split[key] - slope).abs().max() < 1e-7 * scale, key  # weights are float32 in a batch


@pytest.mark.parametrize(
    "name", ["token", "sequence", "dr_grpo", "rloo", "dapo", "gspo", "reinforce", "reinforce_pp, group"]
)
def test_streams_of_masked_tokens_change_no_bit(name: str) -> None:
    """1e6 where nothing is trained, and where tokens have no weight."""
    algorithm = CASES[name]
    results = []
    for junk in (0.0, 1e6, -1e6):
        groups = rolled(algorithm)
        for s in (s for group in groups for s in group):
            s.weights[len(s) // 2 + 10] = 0.0
            for stream in s.streams.values():
                stream[:] = [x if w else junk for x, w in zip(stream, s.weights, strict=True)]
        results.append(one_step(learner(budget=100_000), algorithm, groups))
    for loss, slopes in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(slope, results[0][1][key]) for key, slope in slopes.items())


def test_rewards_of_steps_add_nothing_at_masked_tokens() -> None:
    """The advantage of a token that is not trained is 0, whatever step ends there."""
    group = [sample([5], [6, 7, 8], reward=0.0), sample([5], [9], reward=0.0)]
    group[0].mask[2] = False
    group[0].outcome = Outcome(0.0, steps=((1, 3.0), (2, 0.0)))
    group[1].outcome = Outcome(0.0, steps=((0, 0.0),))
    GRPO(scale="none").credit([group], {})
    assert group[0].streams["advantages"] == [0, 1, 0, -1]


@pytest.mark.parametrize("masked", ["weights", "mask"])
@pytest.mark.parametrize("name", CASES)
def test_an_answer_that_is_masked_leaves_every_weight_as_it_is(name: str, masked: str) -> None:
    algorithm = CASES[name]
    groups = rolled(algorithm)
    for s in (s for group in groups for s in group):
        s.weights = [0.0] * len(s)
        if masked == "mask":
            s.mask = [False] * len(s)
    made = learner(dtype=torch.float32)
    before = values(made)
    loss, _ = one_step(made, algorithm, groups)
    made.optim_step(0.1)
    assert loss == 0
    after = values(made)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_one_masked_answer_among_others_changes_the_denominator_alone() -> None:
    """Of twelve answers one has no weight: with it left out, the others weigh 12 / 11 as much."""
    algorithm = GRPO(mask_cut=True)
    groups = rolled(algorithm)
    masked: Sample = groups[-1][-1]
    assert not any(masked.weights)
    loss, slopes = one_step(learner(), algorithm, groups)
    groups[-1].remove(masked)
    without, of_rest = one_step(learner(), algorithm, groups)
    assert loss == pytest.approx(without * 11 / 12)
    for key, slope in slopes.items():
        assert torch.allclose(slope, of_rest[key] * 11 / 12, atol=1e-12), key
