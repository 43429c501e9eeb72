"""The optimizer: clipping, weight decay and Muon by hand, and no update with a gradient that is not finite."""

import math
from typing import Any

import pytest
import torch

from espalier.config.sections import OptimConfig
from learners import gradients, learner, loss, mixed_groups, values
from samples import tree_groups


def step_of(optim: OptimConfig, lr: float, family: str = "gpt2") -> tuple[Any, ...]:
    """Weights before, gradients, reported norm, weights after one step."""
    made = learner(family, optim=optim)
    before = values(made)
    grads = gradients(made, mixed_groups())
    norm = made.optim_step(lr)["grad_norm"]
    assert all(p.grad is None for p in made.optimizer.parameters().values())
    return before, grads, norm, values(made)


def test_clipping_scales_the_whole_gradient_by_its_global_norm() -> None:
    clip, lr, eps = 0.25, 0.5, 1.0  # with a large epsilon Adam's first step shows the size of the gradient
    before, grads, norm, after = step_of(OptimConfig(clip_norm=clip, eps=eps), lr)
    expected = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
    assert norm == pytest.approx(expected, rel=1e-12)
    assert norm > 4 * clip
    for name, g in grads.items():
        g = g * clip / (expected + 1e-6)
        torch.testing.assert_close(after[name], before[name] - lr * g / (g.abs() + eps), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", [0.0, 1e6])
def test_no_clipping_below_the_limit_or_without_one(clip: float) -> None:
    before, grads, _, after = step_of(OptimConfig(clip_norm=clip, eps=1.0), 0.5)
    for name, g in grads.items():
        torch.testing.assert_close(after[name], before[name] - 0.5 * g / (g.abs() + 1.0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "llama"])
def test_weight_decay_leaves_embeddings_norms_and_biases_alone(family: str) -> None:
    made = learner(family, optim=OptimConfig(weight_decay=0.5))
    before = values(made)
    groups = tree_groups()
    for s in groups[0] + groups[1] + groups[2]:
        s.weights = [0.0] * len(s)  # no gradient: what moves is decayed
    made.forward_backward(groups, loss, {}, 0)
    assert made.optim_step(0.1)["grad_norm"] == 0
    decayed = set()
    for name, value in values(made).items():
        if torch.equal(value, before[name]):
            continue
        decayed.add(name)
        torch.testing.assert_close(value, before[name] * (1 - 0.1 * 0.5), rtol=1e-12, atol=0)
    matrices = {n for n, p in before.items() if p.ndim == 2}
    assert decayed == {n for n in matrices if not any(e in n for e in ("embed_tokens", "lm_head", "wte", "wpe"))}


def test_muon_takes_the_matrices_of_the_layers() -> None:
    optim = OptimConfig(optimizer="muon", weight_decay=0.1, clip_norm=0.0)
    before, grads, _, after = step_of(optim, 0.01, "llama")
    layers = {n for n, p in before.items() if p.ndim == 2 and "layers" in n}
    assert len(layers) == 14
    params = {n: torch.nn.Parameter(before[n].clone()) for n in before}
    for name, p in params.items():
        p.grad = grads[name]
    torch.optim.Muon([params[n] for n in layers], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW([params[n] for n in before if n not in layers], lr=0.01, betas=(0.9, 0.95), weight_decay=0).step()
    for name, p in params.items():
        torch.testing.assert_close(after[name], p.detach(), rtol=1e-9, atol=1e-9)
        assert not torch.equal(after[name], before[name])


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    made = learner()
    before = values(made)
    made.forward_backward(tree_groups(), loss, {}, 0)
    made.optimizer.parameters()["transformer.wte.weight"].grad[3, 3] = torch.inf  # type: ignore[index]
    with pytest.raises(FloatingPointError, match="inf"):
        made.optim_step(0.1)
    assert all(torch.equal(value, before[name]) for name, value in values(made).items())
