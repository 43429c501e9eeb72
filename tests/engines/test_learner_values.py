"""A critic: a scalar head read before every scored token, on the forest, trained on targets made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.errors import ModelError
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Term
from samples import Groups, sample, tree_groups
from tiny import tiny_model


def plain(dtype: torch.dtype = torch.float64) -> Any:
    """The model of every critic here, before a policy takes it."""
    model = tiny_model("llama")
    heads.attach(model, 1, seed=1)
    return model.to(dtype)


def critic(*, budget: int = 2048, dtype: torch.dtype = torch.float64) -> TorchLearner:
    options = LearnerOptions(budget=budget)
    return TorchLearner(Policy(plain(dtype), "forest", says="values"), OptimConfig(weight_decay=0.0), options)


def values_of(model: Any, tokens: list[int]) -> Tensor:
    """The head on the architecture's own hidden states, one per token."""
    hidden = model.model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
    return heads.read(model, hidden)[:, 0]


def with_returns(groups: Groups) -> Groups:
    """Each token's return is its id over 100."""
    for s in (s for g in groups for s in g):
        s.streams["returns"] = [token / 100 for token in s.tokens]
    return groups


def squares(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    assert outputs.values is not None and len(outputs.values) == len(batch.targets_U[batch.score])
    gap = outputs.values - batch.streams["returns"]
    return {"value": Term(0.5 * gap * gap * batch.weights, "tokens")}


def test_values_are_read_before_their_targets() -> None:
    made, model = critic(budget=40), plain()
    groups = tree_groups(1)
    for s, said in zip((s for g in groups for s in g), made.say(groups, ["values"]), strict=True):
        alone = values_of(model, s.tokens).tolist()
        expected = [alone[t - 1] if t and s.mask[t] else 0.0 for t in range(len(s.tokens))]
        assert said.values == pytest.approx(expected, abs=1e-6) and said.logprobs == []


@pytest.mark.parametrize("budget", [30, 10_000])
def test_the_gradient_is_that_of_dense_sequences(budget: int) -> None:
    """The tree lays its stem down once; three of its leaves read it, and each use counts."""
    groups = with_returns(tree_groups(1))
    made = critic(budget=budget)
    result = made.forward_backward(groups, squares, {}, 0)
    assert budget < 100 or result.packed < sum(len(s.tokens) - 1 for g in groups for s in g)
    other = plain()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for s in (s for g in groups for s in g):
        values = values_of(other, s.tokens)
        for t in range(1, len(s.tokens)):
            if s.mask[t]:
                total, count = total + 0.5 * (values[t - 1] - s.tokens[t] / 100) ** 2, count + 1
    (total / count).backward()
    assert result.loss == pytest.approx(total.item() / count, rel=1e-6)
    for name, parameter in made.optimizer.parameters().items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, rtol=1e-4, atol=1e-7)


def test_a_prefix_that_two_answers_share_counts_twice() -> None:
    """Two answers that begin with the same token: its value is one number, its gradient that of both returns."""
    stem = list(range(10, 40))
    groups = with_returns([[sample(stem, [50, 60]), sample(stem, [50, 61])]])
    groups[0][1].streams["returns"][30] = 1.5

    def first(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        assert outputs.values is not None
        (outputs.values.sum()).backward(retain_graph=True)
        return {"value": Term(outputs.values * 0, "tokens")}

    made = critic()
    made.forward_backward(groups, first, {}, 0)
    weight = made.policy.model.get_parameter(heads.WEIGHT)
    hidden = plain().model(input_ids=torch.tensor([[*stem, 50]]), use_cache=False).last_hidden_state[0]
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad[0], 2 * (hidden[29] + hidden[30]).detach(), rtol=1e-5, atol=1e-7)


def test_a_critic_learns_its_targets_and_is_loaded_again(tmp_path: Path) -> None:
    groups = with_returns([[sample([5, 6, 7], [20, 90, 40])], [sample([8, 9], [90, 20])]])
    made = critic(dtype=torch.float32)
    losses = []
    for step in range(60):
        losses.append(made.forward_backward(groups, squares, {}, step).loss)
        made.optim_step(3e-3)
    assert losses[0] > 0.05 and losses[-1] < 1e-3
    made.save(tmp_path / "critic")
    other = critic(dtype=torch.float32)
    other.load(tmp_path / "critic")
    assert other.say(groups, ["values"]) == made.say(groups, ["values"])


def test_a_critic_says_values_alone() -> None:
    made = critic()
    with pytest.raises(ValueError, match="says values gives values, not logprobs"):
        made.say(tree_groups(1), ["logprobs"])
    with pytest.raises(ModelError, match=r"says is values, but .* has no scalar head"):
        Policy(tiny_model("llama"), "forest", says="values")
