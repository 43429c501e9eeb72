"""The checks of the model pass on what is right and fail on the fault they are there for."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from espalier.checks.model import layout, loss, update
from espalier.models.attention import interface as attention
from espalier.models.policy import Policy
from espalier.types import Sample
from tiny import tiny_model


def sample(tokens: list[int], prompt: int) -> Sample:
    s = Sample()
    s.append(tokens[:prompt], trained=False)
    s.append(tokens[prompt:], trained=True)
    return s


@pytest.mark.parametrize("kind", ["forest", "chain", "padded"])
def test_the_layout_check_passes_in_every_layout(kind: Any) -> None:
    groups = [[sample(list(range(5, 40)), 20), sample([*range(5, 25), 99, 98, 97], 20)], [sample([7, 8, 9, 10], 2)]]
    model = tiny_model("llama").train()
    found = layout(Policy(model, kind), groups, torch.float32)
    assert found.verdict == "pass" and kind in found.value


def test_the_layout_check_sees_attention_to_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed without the forest, a row attends to the rows before it."""
    policy = Policy(tiny_model("llama").train(), "forest")

    def leaky(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **more: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None

    attention.AttentionInterface.register(attention.NAME, leaky)
    try:
        groups = [[sample([7, 8, 9, 10, 11], 2)], [sample([20, 21, 22, 23], 2)]]
        assert layout(policy, groups, torch.float32).verdict == "fail"
    finally:
        attention.register()


def test_the_layout_check_sees_a_head_that_does_more() -> None:
    policy = Policy(tiny_model("gemma2").train(), "forest")
    assert layout(policy, [[sample([7, 8, 9, 10, 11], 2)]], torch.float32).verdict == "pass"
    policy.head = replace(policy.head, softcap=None)
    assert layout(policy, [[sample([7, 8, 9, 10, 11], 2)]], torch.float32).verdict == "fail"


def test_the_layout_check_leaves_dropout_aside() -> None:
    model = tiny_model("gpt2", attn_pdrop=0.5).train()
    policy = Policy(model, "forest", dropout=True)
    assert layout(policy, [[sample(list(range(5, 40)), 20)]], torch.float32).verdict == "pass"
    assert model.training


def test_losses_that_are_not_finite_or_worse_than_guessing_are_seen() -> None:
    assert loss(4.8, math.log(128)).verdict == "pass"
    assert loss(float("nan"), math.log(128)).verdict == "fail"
    assert loss(10.0, math.log(128)).verdict == "warn"  # a uniform guess is ln 128 = 4.85


def test_a_rate_that_moves_nothing_is_seen() -> None:
    assert update({"float32": 1.0, "bfloat16": 0.3}).verdict == "pass"
    assert update({"float32": 0.1, "bfloat16": 0.0}).verdict == "fail"
    assert "masters" in update({"float32": 1.0, "bfloat16": 0.0}).way_out


def test_a_yardstick_that_rounds_is_widened_and_a_fault_is_still_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the model's own forward may be further from float32 than the limit: that is no fault of a layout."""
    from espalier.checks import model as checked

    policy = Policy(tiny_model("llama", seed=3).train(), "forest")
    policy.model.to(torch.bfloat16)
    groups = [[sample(list(range(5, 40)), 20), sample([*range(5, 25), 99, 98, 97], 20)]]
    before = [p.data for p in policy.parameters()]
    monkeypatch.setitem(checked.LAYOUT_LIMIT, "bfloat16", 1e-6)
    found = layout(policy, groups, torch.bfloat16)
    assert found.verdict == "pass" and "in float32" in found.limit
    assert all(p.data.data_ptr() == d.data_ptr() for p, d in zip(policy.parameters(), before, strict=True))
    policy.head = replace(policy.head, softcap=2.0)
    assert layout(policy, groups, torch.bfloat16).verdict == "fail"


def test_widened_modules_compute_in_float32_without_a_second_copy() -> None:
    from espalier.checks.model import one_by_one, widened

    policy = Policy(tiny_model("llama").train(), "forest")
    rows = [sample(list(range(5, 40)), 20)]
    policy.model.to(torch.bfloat16)
    with torch.no_grad(), widened(policy.model):
        exact = one_by_one(policy, rows)
    low = {p.dtype for p in policy.parameters()}
    policy.model.float()
    with torch.no_grad():
        assert torch.allclose(one_by_one(policy, rows), exact, atol=1e-5) and low == {torch.bfloat16}
