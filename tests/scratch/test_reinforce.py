"""The flat specification of REINFORCE and REINFORCE++ and the library compute the same advantages, losses, metrics,
gradients and weights."""

import copy
import random
from typing import Any

import pytest
import torch

from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.reinforce import Reinforce
from espalier.algorithms.reinforce_pp import ReinforcePP
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs
from samples import Groups, sample
from scratches import load
from tiny import tiny_model

STEPS, EPOCHS = 2, 3
OPTIM = {"lr": 1e-3, "warmup": 0.0, "clip_norm": 0.5, "eps": 1e-3}
MANY: dict[str, Any] = {"beta": 0.3, "rollout_epochs": EPOCHS}
CASES: dict[str, OnPolicy] = {
    "none": Reinforce(**MANY, baseline="none"),
    "batch": Reinforce(**MANY),
    "moving": Reinforce(**MANY, baseline="moving", baseline_decay=0.7),
    "whiten": ReinforcePP(**MANY),
    "group": ReinforcePP(**MANY, baseline="group"),
}


def rolled(flat: Any, step: int) -> list[Any]:
    """Answers of many lengths to prompts long enough to be shared, two to each; the model has moved from the reference
    in the second step."""
    rng = random.Random(step)

    def run(n: int) -> list[int]:
        return [rng.randrange(5, 128) for _ in range(n)]

    answers = []
    for group, length in enumerate((20, 3, 24)):
        prompt = run(length)
        answers += [flat.Answer(prompt, run(rng.randint(1, 9)), rng.choice([-1.0, 0.3, 1.0]), group) for _ in range(2)]
    return answers


def groups_of(answers: list[Any]) -> Groups:
    groups: Groups = [[] for _ in range(3)]
    for a in answers:
        s = sample(a.prompt, a.tokens, group=a.group, reward=a.reward)
        before = [1e6] * len(a.prompt)  # nothing reads what stands there
        s.streams["old_logprobs"], s.streams["ref_logprobs"] = before + a.old, before + a.ref
        groups[a.group].append(s)
    return groups


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("name", CASES)
def test_the_library_computes_the_same(name: str, budget: int) -> None:
    """Streams are float32 in a batch, which is the rounding that the tolerances allow for."""
    algorithm = CASES[name]
    flat = load("reinforce")
    fields = {"baseline": name, "beta": 0.3, "decay": 0.7, "epochs": EPOCHS, "steps": STEPS}
    settings = flat.Settings(**fields, **OPTIM)
    spec: Any = tiny_model("llama").double()
    model: Any = tiny_model("llama").double()
    held = copy.deepcopy(spec).eval().requires_grad_(False)
    with torch.no_grad():  # away from the reference, so that the KL in the reward is there from the first step
        for own in (spec, model):
            torch.manual_seed(1)
            for p in own.parameters():
                p.add_(0.02 * torch.randn_like(p))
    learner = TorchLearner(Policy(model, "forest"), OptimConfig(**OPTIM), LearnerOptions(budget=budget))
    steps = [rolled(flat, step) for step in range(STEPS)]
    run = flat.updates(spec, held, iter(steps), settings)

    def loss(outputs: Outputs, batch: Batch) -> Any:
        return algorithm.loss(outputs, batch)

    state: dict[str, float] = {}
    lines = []
    for step, answers in enumerate(steps):
        for epoch in range(EPOCHS):
            probe = copy.deepcopy(spec)
            if not epoch:
                for a in answers:
                    a.old = flat.logprobs(probe, a).tolist()
                    a.ref = flat.logprobs(held, a).tolist()
                groups = groups_of(answers)
                state = algorithm.credit(groups, state)
            line = next(run)
            if not epoch:
                for a, s in zip(answers, (s for group in groups for s in group), strict=True):
                    assert s.streams["advantages"] == pytest.approx([0.0] * len(a.prompt) + a.A, abs=1e-10)
            flat.backward(probe, answers, settings)
            result = learner.forward_backward(groups, loss, state, step)
            gradients = {key: p.grad for key, p in probe.named_parameters()}
            scale = max(grad.abs().max() for grad in gradients.values())
            for key, grad in gradients.items():
                got = model.get_parameter(key).grad
                assert got is not None
                assert (got - grad).abs().max() < 2e-6 * scale, (step, epoch, key)
            assert learner.optim_step(OPTIM["lr"])["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-5)
            assert result.loss == pytest.approx(line["loss"], rel=1e-6, abs=1e-6)
            watched = ["policy", "ratio", "clip_low", "clip_high", *(["kl_loss"] if name == "group" else [])]
            assert result.terms == pytest.approx({**result.terms, **{n: line[n] for n in watched}}, rel=1e-6, abs=1e-6)
            lines.append(line)
    assert lines[-1]["ratio"] != 1
    assert lines[0]["kl_loss"] > 1e-3
    for key, p in spec.named_parameters():
        assert (model.get_parameter(key) - p).abs().max() < 1e-6 * max(1.0, p.abs().max()), key
