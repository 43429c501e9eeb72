"""The flat specification of GRPO and the library compute the same losses, metrics, gradients and weights."""

import copy
import functools
import random
from typing import Any

import pytest
import torch

from espalier.algorithms.grpo import GRPO
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs
from samples import Groups, sample
from scratches import load
from tiny import tiny_model

STEPS, EPOCHS = 2, 3
Gradients = dict[str, torch.Tensor]
OPTIM = {"lr": 2e-3, "warmup": 0.0, "clip_norm": 0.5, "eps": 1e-3}


def rolled(step: int) -> list[dict[str, Any]]:
    """Answers of many lengths to prompts long enough to be shared, some with a common beginning; one group is dead."""
    rng = random.Random(step)

    def run(n: int) -> list[int]:
        return [rng.randrange(5, 128) for _ in range(n)]

    opening = run(18)
    return [
        {"prompt": run(20), "answers": [run(5), run(9), run(1)], "rewards": [1.0, 0.0, 0.3]},
        {"prompt": run(3), "answers": [run(4), run(2)], "rewards": [0.5, 0.5]},
        {"prompt": run(24), "answers": [opening + run(4), opening + run(7), run(6)], "rewards": [0.0, 2.0, -1.0]},
    ]


@functools.cache
def flat_run(family: str, **fields: float) -> tuple[list[Gradients], list[dict[str, float]], Any, list[Any]]:
    """What the flat specification computes: the gradient and line of each update, the model at last, the rollouts with
    their old log-probabilities."""
    flat = load("grpo")
    model: Any = tiny_model(family).double()
    held = copy.deepcopy(model).eval().requires_grad_(False)
    settings = flat.Settings(steps=STEPS, epochs=EPOCHS, **OPTIM, **fields)
    steps = [[flat.Group(**row) for row in rolled(step)] for step in range(STEPS)]
    gradients, lines = [], []
    run = flat.updates(model, held, iter(steps), settings)
    for groups in steps:
        for epoch in range(EPOCHS):
            probe = copy.deepcopy(model)
            if not epoch:
                for g in groups:
                    g.old = [x.tolist() for x in flat.logprobs(probe, g, 1.0)]
            flat.backward(probe, held, groups, settings)
            gradients.append({name: p.grad for name, p in probe.named_parameters()})
            lines.append(next(run))
    return gradients, lines, model, steps


def groups_of(rows: list[Any], reference: TorchLearner) -> Groups:
    """The same as samples; streams hold old and reference log-probabilities in float64."""
    groups = []
    for number, g in enumerate(rows):
        group = []
        for y, score, old in zip(g.answers, g.rewards, g.old, strict=True):
            s = sample(g.prompt, y, group=number, reward=score)
            s.streams["old_logprobs"] = [0.0] * len(g.prompt) + old
            group.append(s)
        groups.append(group)
    flat = [s for g in groups for s in g]
    for s, out in zip(flat, reference.say(groups, ["logprobs"]), strict=True):
        s.streams["ref_logprobs"] = out.logprobs
    return groups


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize(("family", "beta"), [("gpt2", 0.0), ("llama", 0.3)])
def test_grpo_is_the_same_as_in_the_library(family: str, beta: float, budget: int) -> None:
    """Streams are float32 in a batch, which is the rounding that the tolerances allow for."""
    gradients, lines, spec, steps = flat_run(family, beta=beta)
    optim = OptimConfig(**OPTIM)
    algorithm = GRPO(beta=beta, rollout_epochs=EPOCHS)
    model: Any = tiny_model(family).double()
    learner = TorchLearner(Policy(model, "forest"), optim, LearnerOptions(budget=budget))
    held = copy.deepcopy(model).eval().requires_grad_(False)
    reference = TorchLearner(Policy(held, "forest"), optim, LearnerOptions())

    def loss(outputs: Outputs, batch: Batch) -> Any:
        return algorithm.loss(outputs, batch)

    number = 0
    for step, rows in enumerate(steps):
        groups = groups_of(rows, reference)
        algorithm.credit(groups, {})
        for _ in range(EPOCHS):
            result = learner.forward_backward(groups, loss, {}, step)
            scale = max(grad.abs().max() for grad in gradients[number].values())
            for name, grad in gradients[number].items():
                got = model.get_parameter(name).grad
                assert got is not None
                assert (got - grad).abs().max() < 2e-6 * scale, (number, name)
            line = dict(lines[number])
            norm = learner.optim_step(optim.lr)["grad_norm"]
            assert result.loss == pytest.approx(line["loss"], rel=1e-6, abs=1e-6)
            assert norm == pytest.approx(line["grad_norm"], rel=1e-5)
            names = ["policy", "ratio", "clip_low", "clip_high", *(["kl", "kl_loss"] if beta else [])]
            assert result.terms == pytest.approx({**result.terms, **{n: line[n] for n in names}}, rel=1e-6, abs=1e-6)
            number += 1
    assert lines[-1]["ratio"] != 1
    assert max(line["clip_high"] + line["clip_low"] for line in lines) > 0.1
    for name, p in spec.named_parameters():
        moved = model.get_parameter(name)
        assert (moved - p).abs().max() < 1e-6 * max(1.0, p.abs().max()), name
