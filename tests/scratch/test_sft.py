"""The flat specification and the library compute the same losses, gradients and weights."""

import ast
import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.algorithms.sft import SFT
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.loop.schedule import learning_rate
from espalier.models.policy import Policy
from espalier.types import Sample
from samples import Groups, sample, tree_groups
from scratches import SCRATCH, load
from tiny import tiny_model

STEPS = 6


@pytest.mark.parametrize("path", sorted(SCRATCH.glob("*.py")), ids=lambda p: p.stem)
def test_imports_nothing_of_the_library(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names - set(sys.stdlib_module_names) <= {"torch", "transformers"}


def step_data(step: int) -> Groups:
    """Trees, message weights, replay text, and a sample without anything trained."""
    groups = tree_groups(step)
    for i, s in enumerate(s for g in groups for s in g):
        s.weights = [w * (0.5, 1.0, 2.0)[(i + step) % 3] for w in s.weights]
    text = Sample(part="replay")
    text.append(list(range(20 + step, 40 + step)), trained=True)
    return [*groups, [text], [sample([5, 6, 7], [])], [sample([8], [9, 10], part="replay")]]


@pytest.mark.parametrize(
    ("family", "dtype", "eps", "gradients", "weights"),
    [
        ("gpt2", torch.float64, 1e-8, 1e-12, 1e-10),
        ("llama", torch.float64, 1e-3, 1e-6, 1e-7),  # RoPE is float32 inside transformers
        ("qwen2", torch.float64, 1e-3, 1e-6, 1e-7),
        ("llama", torch.float32, 1e-3, 1e-5, 1e-5),
        ("lfm2", torch.float64, 1e-8, 1e-12, 1e-10),  # padded
    ],
)
def test_sft_is_the_same_as_in_the_library(
    family: str, dtype: torch.dtype, eps: float, gradients: float, weights: float
) -> None:
    flat = load("sft")
    reference: Any = tiny_model(family).to(dtype)
    model = copy.deepcopy(reference)
    optim = OptimConfig(lr=1e-3, warmup=0.3, weight_decay=0.1, clip_norm=0.5, eps=eps)
    settings = flat.Settings(steps=STEPS, lr=1e-3, warmup=0.3, weight_decay=0.1, clip_norm=0.5, eps=eps)
    algorithm = SFT(replay_coef=0.1)
    policy = Policy(model, "padded" if family == "lfm2" else "forest")
    learner = TorchLearner(policy, optim, LearnerOptions(budget=70, linear=algorithm.traits.linear))

    def sequences(step: int) -> list[Any]:
        return [flat.Sequence(s.tokens, s.weights, s.part) for g in step_data(step) for s in g]

    want = flat.train(reference, (sequences(step) for step in range(STEPS)), settings)
    tight = 1e-12 if gradients < 1e-9 else gradients
    for step in range(STEPS):
        probe = copy.deepcopy(reference)
        flat.backward(probe, sequences(step), 0.1)
        result = learner.forward_backward(step_data(step), lambda o, b: algorithm.loss(o, b), {}, step)
        scale = max(p.grad.abs().max() for p in probe.parameters())
        for name, p in probe.named_parameters():
            got = model.get_parameter(name).grad
            assert got is not None
            assert (got - p.grad).abs().max() < gradients * scale, (step, name)
        lr = learning_rate(step, STEPS, optim)
        norm = learner.optim_step(lr)["grad_norm"]
        line = next(want)
        assert lr == pytest.approx(line["lr"], rel=1e-15)
        assert norm == pytest.approx(line["grad_norm"], rel=tight)
        assert norm > 0.5  # clipping is at work
        assert result.loss == pytest.approx(line["loss"], rel=tight)
        assert result.terms == pytest.approx({"nll": line["main"], "nll_replay": line["replay"]}, rel=tight)
    for name, p in reference.named_parameters():
        moved = model.get_parameter(name)
        assert (moved - p).abs().max() < weights * p.abs().max(), name
        assert not torch.equal(moved, tiny_model(family).to(dtype).get_parameter(name))
