"""The load-balancing loss against transformers' own."""

import copy
from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from espalier.forest.pack import pack, totals
from espalier.forest.trie import laid_length
from espalier.models.policy import Policy
from espalier.models.router import balance_loss
from samples import tree_groups
from tiny import tiny_model


def test_by_hand() -> None:
    # Two tokens, two experts, top 1: expert 0 takes both. f = (1, 0), P = (mean of .9 and .6, ...) = (.75, .25).
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
    assert balance_loss([logits], 1, torch.tensor([1, 1])).item() == pytest.approx(2 * 0.75)
    # The first token counts three times: P_0 = (3 x .9 + .6) / 4
    assert balance_loss([logits], 1, torch.tensor([3, 1])).item() == pytest.approx(2 * 3.3 / 4)


def test_equals_transformers_on_separate_sequences() -> None:
    model: Any = tiny_model("qwen3_moe", num_hidden_layers=3)
    reference: Any = copy.deepcopy(model)
    groups = tree_groups()
    batch = pack(groups, totals(groups), count_uses=True)
    assert batch.uses_N is not None
    assert batch.uses_N.max() == 4
    got = Policy(model, "forest", router_loss=True)(batch)["router"]

    layers: list[list[torch.Tensor]] = [[], [], []]
    for s in (s for g in groups for s in g):
        tokens = torch.tensor([s.tokens[: laid_length(s)]])
        for i, logits in enumerate(reference(input_ids=tokens, output_router_logits=True).router_logits):
            layers[i].append(logits)
    want = load_balancing_loss_func(tuple(torch.cat(layer) for layer in layers), 4, 2)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    got.backward()
    want.backward()
    for name, p in reference.named_parameters():
        if p.grad is not None:
            mine = model.get_parameter(name).grad
            torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-6)


def test_off_by_default() -> None:
    model = tiny_model("qwen3_moe")
    groups = tree_groups()
    assert set(Policy(model, "forest")(pack(groups, totals(groups)))) == {"logprobs"}


def test_needs_to_know_how_often_tokens_are_used() -> None:
    policy = Policy(tiny_model("qwen3_moe"), "forest", router_loss=True)
    groups = tree_groups()
    with pytest.raises(ValueError, match="count_uses=True"):
        policy(pack(groups, totals(groups)))
