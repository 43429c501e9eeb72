"""The check of the update: AdamW and Muon as they are pass, and every fault of a step is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from desk import Desk
from espalier.checks.optimizer import Weights, optimizer_steps, steps_apart, undecayed, unmoved
from espalier.config.sections import ModelConfig, OptimConfig
from espalier.engines import optimizer as engine
from espalier.engines.optimizer import Optimizer
from tiny import tiny_model

RIGHT = Weights(1e-4, decayed=["a"], moved=["a", "norm"], plain=["norm"], frozen=["b"])


def apart(config: OptimConfig, dtype: torch.dtype = torch.float32, kind: Any = Optimizer) -> dict[str, float]:
    return steps_apart(kind((), config, set()), config, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(), OptimConfig(weight_decay=0.3, beta1=0.8, beta2=0.999), OptimConfig(clip_norm=0.0),
        OptimConfig(clip_norm=1e-3), OptimConfig(lr=1e-7), OptimConfig(optimizer="muon"),
    ],
)  # fmt: skip
def test_two_steps_are_those_by_hand(config: OptimConfig, dtype: torch.dtype) -> None:
    found = apart(config, dtype)
    assert optimizer_steps(found, RIGHT).verdict == "pass"
    assert set(found) == ({"norm", "embedding"} if config.optimizer == "muon" else {"matrix", "norm", "embedding"})


class Decaying(Optimizer):
    def _adam(self, decayed: list[str], bare: list[str]) -> torch.optim.Optimizer:
        return super()._adam([*decayed, *bare], [])


class Swapped(Optimizer):
    def _adam(self, decayed: list[str], bare: list[str]) -> torch.optim.Optimizer:
        self.config = replace(self.config, beta1=self.config.beta2, beta2=self.config.beta1)
        return super()._adam(decayed, bare)


class Adding(Optimizer):
    def step(self, lr: float) -> float:
        kept = {name: p.grad.clone() for name, p in self.parameters().items() if p.grad is not None}
        norm = super().step(lr)
        for name, grad in kept.items():
            self.parameters()[name].grad = grad
        return norm


class Clipping(Optimizer):
    def step(self, lr: float) -> float:
        for p in self.parameters().values():
            assert p.grad is not None
            p.grad.clamp_(-0.01, 0.01)
        return super().step(lr)


class Last(Optimizer):
    def _add_master(self, name: str, parameter: Any) -> None:
        master = self.masters[name] = torch.nn.Parameter(parameter.detach().float())

        def collect(param: Any) -> None:
            master.grad, param.grad = param.grad.float(), None

        parameter.register_post_accumulate_grad_hook(collect)


@pytest.mark.parametrize("kind", [Decaying, Swapped, Adding, Clipping, Last])
def test_a_step_that_is_not_adamw_is_seen(kind: type[Optimizer]) -> None:
    dtype = torch.bfloat16 if kind is Last else torch.float32
    assert optimizer_steps(apart(OptimConfig(), dtype), RIGHT).verdict == "pass"
    assert optimizer_steps(apart(OptimConfig(), dtype, kind), RIGHT).verdict == "fail"


@pytest.mark.parametrize(
    "changed",
    [
        {"first_rate": 0.0}, {"decayed": ["a", "norm"]}, {"moved": ["a", "b"]}, {"inexact": ["a"]},
        {"first_rate": float("nan")},
    ],
)  # fmt: skip
def test_rates_and_names_that_are_wrong_are_seen(changed: dict[str, Any]) -> None:
    assert optimizer_steps({"matrix": 0.0}, RIGHT).verdict == "pass"
    outcome = optimizer_steps({"matrix": 0.0}, replace(RIGHT, **changed))
    assert outcome.verdict == "fail" and outcome.value
    assert optimizer_steps({"matrix": float("nan")}, RIGHT).verdict == "fail"


def test_names_of_what_is_frozen_and_not_decayed() -> None:
    model = tiny_model("llama")
    plain = undecayed(model)
    assert "model.embed_tokens.weight" in plain and "lm_head.weight" in plain
    assert "model.layers.0.input_layernorm.weight" in plain and "model.layers.0.self_attn.q_proj.weight" not in plain
    assert unmoved(model, ModelConfig(model="m")) == []
    fixed = unmoved(model, ModelConfig(model="m", freeze_layers=0.5))
    assert "model.embed_tokens.weight" in fixed and "model.layers.0.self_attn.q_proj.weight" in fixed
    assert not any("layers.1" in name or "lm_head" in name for name in fixed)


def test_what_a_run_may_not_move_stops_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.models import freeze

    flags = ("--freeze-layers", 0.5)
    desk.run("check dpo", *flags, name="right")
    was = freeze._lowest

    def highest(model: Any, share: float, named: Any) -> Any:
        names, note = was(model, share, named)
        return [name.replace("layers.0", "layers.1") for name in names], note

    monkeypatch.setattr(freeze, "_lowest", highest)
    desk.run("check dpo", *flags, code=2)
    assert "optimizer:" in desk.err + desk.out and "is to be frozen" in desk.err + desk.out


def test_masters_of_rounded_weights_stop_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run("check dpo", "--dtype", "bfloat16", name="right")
    monkeypatch.setattr(engine.Optimizer, "take", lambda self, name, value: None)
    desk.run("check dpo", "--dtype", "bfloat16", code=2)
    assert "does not start from the weights as they were loaded" in desk.err + desk.out
