"""How a critic that is a model of its own is trained beside the policy."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.config.sections import OptimConfig
from espalier.engines.protocols import Learner, Roles


@dataclass(frozen=True, slots=True)
class CriticTraining:
    """optim: its learning rate and schedule. warmup: steps from the start that train the critic alone. pretrain: passes
    over the answers of the first step in which it learns their returns before anything else; their values are read anew
    afterwards."""

    optim: OptimConfig
    warmup: int = 0
    pretrain: int = 0


def own_critic(roles: Roles) -> Learner | None:
    """The critic, unless it shares the policy's backbone (and so its optimizer and its place in a checkpoint)."""
    return None if roles.critic is roles.policy else roles.critic
