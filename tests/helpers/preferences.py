"""Pairs, learners and stores for tests of what the policy is held against."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from espalier.config.sections import ModelConfig, OptimConfig
from espalier.engines.learner import ExportOptions, LearnerOptions, TorchLearner
from espalier.models.adapters import add_adapter
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample, Term
from samples import Groups, sample
from tiny import tiny_model, tiny_tokenizer


def pair_groups(count: int = 4, *, seed: int = 0, base: int = 0) -> Groups:
    """Prompts of 20 tokens with two answers, the first preferred; keys count up from `base`, groups from 0."""
    rng = random.Random(seed)

    def run(n: int) -> list[int]:
        return [rng.randrange(5, 128) for _ in range(n)]

    groups = []
    for number in range(count):
        prompt = run(20)
        group = [sample(prompt, run(6 + number), group=number, label=1.0), sample(prompt, run(9), group=number)]
        group[0].beats, group[1].label = [1], 0.0
        for place, s in enumerate(group):
            s.key = base + 2 * number + place
        groups.append(group)
    return groups


def make(
    family: str = "llama", *, lora: bool = False, adapter: str = "", optim: dict[str, Any] | None = None, **options: Any
) -> TorchLearner:
    """A learner of a tiny model at 64 tokens a forward, groups whole."""
    model = tiny_model(family)
    if lora or adapter:
        add_adapter(model, ModelConfig(model="m", lora_rank=4 if lora else 0, adapter=adapter), seed=3)
    settings = LearnerOptions(**{"budget": 64, "whole": True, **options})
    export = ExportOptions(tiny_tokenizer(), stop_ids=(4,), adapter_only=lora)
    return TorchLearner(
        Policy(model, "forest"), OptimConfig(**{"lr": 1e-2, **(optim or {})}), settings, export_options=export
    )


def likelihood(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    """Moves every weight."""
    return {"nll": Term(-outputs.logprobs, "tokens")}


def train(learner: TorchLearner, groups: Groups, steps: int = 2) -> None:
    for step in range(steps):
        learner.forward_backward(groups, likelihood, {}, step)
        learner.optim_step(1e-2)


def policy_logprobs(learner: TorchLearner, groups: Groups) -> list[list[float]]:
    return [outputs.logprobs for outputs in learner.say(groups, ["logprobs"])]


def furthest(a: list[list[float]], b: list[list[float]]) -> float:
    """The largest difference between two entries."""
    return max(abs(x - y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


@dataclass
class Table:
    """A token store in memory: new samples at every access, keys from `base` on."""

    rows: Groups
    key: str = "toy"
    part: str = "main"

    def __len__(self) -> int:
        return len(self.rows)

    def group(self, i: int) -> list[Sample]:
        return [
            Sample(list(s.tokens), list(s.mask), list(s.weights), group=i, key=s.key, beats=list(s.beats))
            for s in self.rows[i]
        ]
