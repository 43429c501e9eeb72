"""Updates of rollouts: silent groups in the totals, outputs that are kept, largest entries, entropy with a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.engines.learner import TorchLearner
from espalier.types import Batch, Outputs, Term
from learners import learner
from samples import Groups, tree_groups
from tiny import tiny_model


def weighted(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    p = outputs.logprobs
    return {
        "policy": Term(-p * batch.weights, "tokens"),
        "sequence": Term(-p * batch.weights, "sequences", coef=0.5),
        "metric": Term(p.detach() * batch.weights, "tokens", coef=0.0),
        "peak": Term(p.detach(), "max", coef=0.0),
    }


def grads(made: TorchLearner) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in made.optimizer.parameters().items() if p.grad is not None}


def constant(groups: Groups) -> Groups:
    """The groups, weights 1 but 0 for the last sample of each: their gradient is not 0."""
    for group in groups:
        for s in group:
            s.weights = [1.0 if trained else 0.0 for trained in s.mask]
    return groups


def scored(groups: Groups) -> int:
    return sum(sum(s.mask[1:]) for g in groups for s in g)


@pytest.mark.parametrize("budget", [30, 10_000])
def test_silent_groups_count_in_trained_terms_alone(budget: int) -> None:
    """The gradient is the one of what ran, with the denominators of all: tokens and sequences counted by hand."""
    groups, silent = constant(tree_groups(1)), constant(tree_groups(2))
    silent[0][0].streams["unlike"] = [0.0] * len(silent[0][0])  # counted, never packed
    made = learner(budget=budget)
    result = made.forward_backward(groups, weighted, {}, 0, silent=silent)
    got = grads(made)
    ran, all_of = scored(groups), scored(groups) + scored(silent)
    samples = sum(map(len, groups))

    def by_hand(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        p = outputs.logprobs * batch.weights
        share = ran / all_of
        return {"a": Term(-p * share, "tokens"), "b": Term(-p * 0.5 * samples / (2 * samples), "sequences")}

    other = learner(budget=budget)
    expected = other.forward_backward(groups, by_hand, {}, 0)
    assert result.loss == pytest.approx(expected.loss, rel=1e-12)
    for name, gradient in grads(other).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-13)
    logprobs = [x for out in other.say(groups, ["logprobs"]) for x in out.logprobs if x]
    assert result.terms["metric"] == pytest.approx(sum(logprobs) / ran, rel=1e-12)
    assert result.terms["policy"] == pytest.approx(-sum(logprobs) / all_of, rel=1e-12)
    assert result.terms["peak"] == pytest.approx(max(logprobs), abs=1e-12) and result.peaks == ("peak",)
    assert result.tokens == sum(len(s.tokens) for g in groups for s in g)


@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize("linear", [False, True])
def test_what_the_forward_said_is_kept_in_order(budget: int, linear: bool) -> None:
    groups = tree_groups(1)
    made = learner(budget=budget, linear=linear)
    said = made.say(groups, ["logprobs", "entropy"])

    def loss(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        assert outputs.entropy is None, "what is kept for the log is not what the loss asked for"
        return {"nll": Term(-outputs.logprobs * batch.weights, "tokens")}

    result = made.forward_backward(groups, loss, {}, 0, keep=("logprobs", "entropy"))
    assert len(result.outputs) == len(said)
    for kept, expected in zip(result.outputs, said, strict=True):
        assert kept.logprobs == pytest.approx(expected.logprobs, abs=1e-12)
        assert kept.entropy == pytest.approx(expected.entropy, abs=1e-12)
    plain = learner(budget=budget)
    assert plain.forward_backward(groups, loss, {}, 0).outputs == []
    for name, gradient in grads(plain).items():
        torch.testing.assert_close(grads(made)[name], gradient, rtol=1e-10, atol=1e-13)


def test_an_entropy_bonus_has_the_gradient_of_plain_logits() -> None:
    groups = tree_groups(1)
    made = learner(entropy=True, budget=30)

    def bonus(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        assert outputs.entropy is not None
        return {"bonus": Term(-outputs.entropy * batch.weights, "tokens", coef=0.3)}

    made.forward_backward(groups, bonus, {}, 0, keep=("entropy",))
    plain: Any = tiny_model("gpt2").double()
    total = torch.zeros((), dtype=torch.float64)
    for s in (s for g in groups for s in g):
        log_p = plain(input_ids=torch.tensor([s.tokens])).logits[0].log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        total = total + sum(entropy[t - 1] for t in range(1, len(s.tokens)) if s.mask[t])
    (-0.3 * total / scored(groups)).backward()
    for name, gradient in grads(made).items():
        torch.testing.assert_close(gradient, plain.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


def test_held_out_terms_leave_out_the_largest_entries() -> None:
    measured = learner().measure(tree_groups(1), weighted, {})
    assert set(measured) == {"policy", "sequence", "metric"}
