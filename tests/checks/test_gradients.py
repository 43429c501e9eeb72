"""The checks of gradients pass on what is right and fail on the fault they are there for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from desk import Desk
from espalier.algorithms.cpo import CPO
from espalier.checks.gradients import (
    Gradient,
    accumulation,
    difference,
    early,
    gradient_of,
    layout_gradients,
    read_gradient,
    without_noise,
)
from espalier.models.policy import Policy
from espalier.types import Sample
from learners import learner, loss, mixed_groups
from samples import sample, tree_groups
from tiny import tiny_model

STEM = list(range(5, 30))


def siblings() -> list[list[Sample]]:
    """Two answers to a prompt that is long enough to be shared, and a sample alone."""
    return [[sample(STEM, [40, 41, 42]), sample(STEM, [50, 51, 52, 53])], [sample([7, 8], [9, 10])]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("layout", ["forest", "chain", "padded"])
def test_the_gradients_of_every_layout_are_those_of_one_by_one(family: str, layout: Any) -> None:
    policy = Policy(tiny_model(family).train(), layout)
    outcome = layout_gradients(policy, siblings(), "float32")
    assert outcome.verdict == "pass" and layout in outcome.value
    assert all(p.grad is None for p in policy.parameters())


def test_a_prefix_that_gets_no_gradient_from_its_children_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward is the same to the bit; only the gradient of shared keys lacks what the answers say."""
    from espalier.models.attention import cpu

    policy = Policy(tiny_model("llama").train(), "forest")
    assert layout_gradients(policy, siblings(), "float32").verdict == "pass"
    names = [name for name in vars(cpu) if isinstance(getattr(cpu, name), type)]
    (function,) = [getattr(cpu, n) for n in names if issubclass(getattr(cpu, n), torch.autograd.Function)]
    backward = function.backward

    def halved(ctx: Any, *grads: Any) -> Any:
        return tuple(g / 2 if torch.is_tensor(g) else g for g in backward(ctx, *grads))

    monkeypatch.setattr(function, "backward", staticmethod(halved))
    assert layout_gradients(policy, siblings(), "float32").verdict == "fail"


def test_what_is_compared_is_trained() -> None:
    model = tiny_model("llama")
    assert next(iter(early(model))).endswith("embed_tokens.weight") and any("k_proj" in name for name in early(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    assert all("layers.1" in name for name in early(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_forward_and_three_have_the_same_gradient(dtype: torch.dtype) -> None:
    made = learner("llama", dtype=torch.float32, compute=dtype)
    groups = mixed_groups()
    one = gradient_of(made, groups, loss, {}, 1000)
    three = gradient_of(made, groups, loss, {}, 60)
    limit = 1e-5 if dtype == torch.float32 else 0.1
    assert accumulation(one, three, one.loss, limit).verdict == "pass" and one.kept
    assert made.forwards.budget == 2048 and all(p.grad is None for p in made.optimizer.parameters().values())
    last = gradient_of(made, groups[-1:], loss, {}, 60)
    assert accumulation(one, last, one.loss, limit).verdict == "fail"
    assert accumulation(one, three, one.loss * 1.5, limit).verdict == "fail"
    assert accumulation(one._replace(loss=math.nan), three, one.loss, limit).verdict == "fail"


def test_gradients_that_turn_are_told_apart_from_those_that_do_not() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    one, turned = Gradient(1.0, {"a": 1.0}, {"a": x}), Gradient(1.0, {"a": 1.0}, {"a": y})
    assert difference(one, turned) == (0.0, pytest.approx(math.sqrt(2)))
    assert difference(one, Gradient(1.0, {"a": 4.0}, {"a": 2 * x})) == (1.0, 1.0)
    nothing = Gradient(1.0, {"a": 0.0}, {})
    assert difference(nothing, nothing) == (0.0, 0.0) and difference(nothing, one)[0] == math.inf


def test_masters_hand_out_their_gradient() -> None:
    made = learner("llama", dtype=torch.float32, compute=torch.bfloat16)
    made.forward_backward(tree_groups(), loss, {}, 0)
    found = read_gradient(made, 1.0)
    assert found.squares and all(p.grad is None for p in made.optimizer.parameters().values())


def test_noise_is_off_inside_and_back_on_behind() -> None:
    made = learner("llama", dtype=torch.float32, policy={"neftune_alpha": 5.0}, layout="chain")
    with without_noise(made):
        one = gradient_of(made, tree_groups(), loss, {}, 1000)
        measured = made.measure(tree_groups(), loss, {})["nll"]
    assert one.loss == pytest.approx(measured.sum / measured.total, rel=1e-5) and made.policy.noisy


@pytest.mark.parametrize(
    ("fault", "command"),
    [
        (
            lambda terms, totals, ran: (sum((t.coef * t.x.mean() for t in terms.values() if t.coef), start=0.0), {}),
            "cpo",
        ),
        (
            lambda terms, totals, ran: (sum(t.x.sum() / totals[t.over, t.part] for t in terms.values() if t.coef), {}),
            "orpo",
        ),
    ],
)
def test_a_loss_that_depends_on_the_split_stops_a_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: Any, command: str
) -> None:
    desk.run(f"check {command}", name="right")
    monkeypatch.setattr("espalier.engines.learner.normalise", fault)
    desk.run(f"check {command}", "--skip-checks", "loss", code=2)
    assert "accumulation:" in desk.err + desk.out


def test_divisors_of_a_micro_batch_stop_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.forest.pack import totals
    from espalier.losses.ops import normalise

    def of_the_batch(self: Any, outputs: Any, batch: Any) -> Any:
        batch.totals.update(totals([batch.samples]))
        return was(self, outputs, batch)

    was = CPO.loss
    assert normalise is not None
    monkeypatch.setattr(CPO, "loss", of_the_batch)
    desk.run("check cpo", code=2)
    assert "accumulation:" in desk.err + desk.out or "first_loss:" in desk.err + desk.out
