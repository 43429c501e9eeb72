"""A learner of a tiny model, groups with weights and parts, and its gradients and values."""

from typing import Any

import torch
from torch import Tensor

from espalier.algorithms.sft import SFT
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample, Term
from samples import Groups, sample, tree_groups
from tiny import tiny_model

SFT_LOSS = SFT(replay_coef=0.1)


def loss(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    return SFT_LOSS.loss(outputs, batch)


def learner(
    family: str = "gpt2",
    *,
    dtype: torch.dtype = torch.float64,
    layout: Any = "forest",
    optim: OptimConfig | None = None,
    model: dict[str, Any] | None = None,
    policy: dict[str, Any] | None = None,
    **options: Any,
) -> TorchLearner:
    made = Policy(tiny_model(family, **(model or {})).to(dtype), layout, **(policy or {}))
    return TorchLearner(made, optim or OptimConfig(), LearnerOptions(**options))


def mixed_groups() -> Groups:
    """A tree, single samples, weights other than 1, and a part of its own."""
    groups = tree_groups(3)
    for i, s in enumerate(s for g in groups for s in g):
        s.key = i
        s.weights = [w * (0.5 + i % 3) for w in s.weights]
    everything = Sample(part="replay", key=20)
    everything.append(list(range(30, 50)), trained=True)
    return [*groups, [everything], [sample([7, 8], [9], part="replay", key=21)]]


def gradients(made: TorchLearner, groups: Groups, *, step: int = 0) -> dict[str, Tensor]:
    for p in made.optimizer.parameters().values():
        p.grad = None
    made.forward_backward(groups, loss, {}, step)
    return {n: p.grad.clone() for n, p in made.optimizer.parameters().items() if p.grad is not None}


def values(made: TorchLearner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in made.optimizer.parameters().items()}
