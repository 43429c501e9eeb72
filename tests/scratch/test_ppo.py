"""The flat specification of PPO and the library compute the same advantages, returns, losses, metrics, gradients and
weights of actor and critic."""

import copy
import random
from typing import Any

import pytest
import torch

from espalier.algorithms.ppo import PPO
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.models import heads
from espalier.models.policy import Policy
from samples import Groups, sample
from scratches import load
from tiny import tiny_model

STEPS, EPOCHS = 2, 3
RATES = {"lr": 1e-3, "critic_lr": 2e-3}
OPTIM = {"warmup": 0.0, "clip_norm": 0.5, "eps": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "default": {"beta": 0.05},
    "monte carlo advantage": {"beta": 0.3, "lam": 1.0, "value_clip": 0.0},
    "one step": {"beta": 0.3, "lam": 0.0, "gamma": 0.9},
    "clips": {"beta": 0.3, "score_clip": 0.5, "value_clip": 0.01, "clip_low": 0.01, "clip_high": 0.02},
}


def rolled(flat: Any, step: int) -> list[Any]:
    """Answers of many lengths to prompts long enough to be shared, two to each."""
    rng = random.Random(step)

    def run(n: int) -> list[int]:
        return [rng.randrange(5, 128) for _ in range(n)]

    answers = []
    for length in (20, 3, 24):
        prompt = run(length)
        answers += [flat.Answer(prompt, run(rng.randint(1, 9)), rng.choice([-1.0, 0.3, 1.0])) for _ in range(2)]
    return answers


def groups_of(answers: list[Any]) -> Groups:
    groups: Groups = [[] for _ in range(3)]
    for number, a in enumerate(answers):
        s = sample(a.prompt, a.tokens, group=number // 2, reward=a.reward)
        before = [1e6] * len(a.prompt)  # nothing reads what stands there
        for name, numbers in (("old_logprobs", a.old), ("ref_logprobs", a.ref), ("values", a.V)):
            s.streams[name] = before + numbers
        groups[number // 2].append(s)
    return groups


def critic_of(flat_critic: Any) -> tuple[Any, TorchLearner]:
    """The library's critic with the same weights."""
    model: Any = tiny_model("llama")
    heads.attach_value(model)
    model = model.double()
    model.model.load_state_dict(flat_critic.backbone.state_dict())
    with torch.no_grad():
        model.get_parameter(heads.WEIGHT).copy_(flat_critic.weight)
    optim = OptimConfig(lr=RATES["critic_lr"], **OPTIM)
    return model, TorchLearner(Policy(model, "forest", says="values"), optim, LearnerOptions(budget=60))


def same_gradients(pairs: list[tuple[str, Any, Any]]) -> None:
    scale = max(grad.abs().max() for _, grad, _ in pairs)
    for key, grad, got in pairs:
        assert got is not None
        assert (got - grad).abs().max() < 2e-6 * scale, key


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("name", CASES)
def test_the_library_computes_the_same(name: str, budget: int) -> None:
    """Streams are float32 in a batch, which is the rounding that the tolerances allow for."""
    fields = CASES[name]
    algorithm = PPO(**fields, rollout_epochs=EPOCHS, minibatches=1)
    flat = load("ppo")
    settings = flat.Settings(**fields, **RATES, **OPTIM, epochs=EPOCHS, steps=STEPS)
    spec: Any = tiny_model("llama").double()
    model: Any = tiny_model("llama").double()
    held = copy.deepcopy(spec).eval().requires_grad_(False)
    for own in (spec, model):  # away from the reference, so that the KL is there from the first step
        torch.manual_seed(1)
        with torch.no_grad():
            for p in own.parameters():
                p.add_(0.02 * torch.randn_like(p))
    flat_critic = flat.Critic(spec)
    with torch.no_grad():  # a weight of 0 would leave the layers without gradient
        flat_critic.weight.copy_(0.1 * torch.randn_like(flat_critic.weight))
    values, critic = critic_of(flat_critic)
    optim = OptimConfig(lr=RATES["lr"], **OPTIM)
    learner = TorchLearner(Policy(model, "forest"), optim, LearnerOptions(budget=budget))
    steps = [rolled(flat, step) for step in range(STEPS)]
    run = flat.updates(spec, flat_critic, held, iter(steps), settings)
    lines = []
    for step, answers in enumerate(steps):
        for epoch in range(EPOCHS):
            probe, probed_critic = copy.deepcopy(spec), copy.deepcopy(flat_critic)
            if not epoch:
                for a in answers:
                    with torch.no_grad():
                        a.old, a.ref = flat.logprobs(probe, a).tolist(), flat.logprobs(held, a).tolist()
                        a.V = probed_critic(a).tolist()
                groups = groups_of(answers)
                algorithm.credit(groups, {})
            line = next(run)
            if not epoch:
                for a, s in zip(answers, (s for group in groups for s in group), strict=True):
                    assert s.streams["advantages"] == pytest.approx([0.0] * len(a.prompt) + a.A, abs=1e-8)
                    assert s.streams["returns"] == pytest.approx([0.0] * len(a.prompt) + a.R, abs=1e-8)
            flat.backward(probe, probed_critic, answers, settings)
            state = {"beta": fields["beta"]}
            result = learner.forward_backward(groups, algorithm.loss, state, step)
            judged = critic.forward_backward(groups, algorithm.value_loss, state, step)
            same_gradients([(key, p.grad, model.get_parameter(key).grad) for key, p in probe.named_parameters()])
            layers = [
                (key, p.grad, values.model.get_parameter(key).grad)
                for key, p in probed_critic.backbone.named_parameters()
            ]
            same_gradients([*layers, ("weight", probed_critic.weight.grad, values.get_parameter(heads.WEIGHT).grad)])
            norms = learner.optim_step(RATES["lr"])["grad_norm"], critic.optim_step(RATES["critic_lr"])["grad_norm"]
            assert norms == pytest.approx((line["grad_norm"], line["grad_norm_critic"]), rel=1e-5)
            watched = {**result.terms, **judged.terms}
            expected = {n: x for n, x in line.items() if n in watched}
            assert len(expected) == 7
            assert watched == pytest.approx({**watched, **expected}, rel=1e-6, abs=1e-6)
            assert result.loss == pytest.approx(line["policy"], rel=1e-6, abs=1e-6)
            assert judged.loss == pytest.approx(line["value"], rel=1e-6, abs=1e-6)
            lines.append(line)
    assert lines[-1]["ratio"] != 1
    if name == "clips":
        assert max(line["clip_low"] for line in lines) > 0 and lines[-1]["value"] > lines[-1]["value_error"] / 2 + 1e-6
    for key, p in spec.named_parameters():
        assert (model.get_parameter(key) - p).abs().max() < 1e-6 * max(1.0, p.abs().max()), key
