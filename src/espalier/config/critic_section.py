"""Config sections of algorithms with a critic, and of texts that stand beside answers in every minibatch."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Lt

from espalier.config.data_source import SourceList
from espalier.config.fields import CountOrZero, Name, NotNegative, Number, section
from espalier.errors import ConfigError

SHARED, OWN = "shared", "policy"


@section
class CriticConfig:
    """The model that says what an answer is worth so far."""

    critic: Name = OWN
    """policy: a copy of the model, with a new head that starts at 0. shared: such a head on the policy itself. Or the
    folder of a reward model, or of its run, whose scores are the first values."""
    critic_lr: NotNegative = 0.0
    """Peak learning rate of a critic of its own; 0 takes 5e-6, and 5e-5 for LoRA. All else is as for the policy."""
    critic_warmup: CountOrZero = 0
    """Steps from the start that train the critic alone."""
    critic_pretrain: CountOrZero = 0
    """Passes over the answers of the first step in which the critic learns before anything else."""

    def __post_init__(self) -> None:
        for key in ("critic_lr", "critic_warmup", "critic_pretrain"):
            if getattr(self, key) and self.critic == SHARED:
                raise ConfigError(
                    f"{key} is given, but the critic shares the policy's weights and optimizer; give another critic, "
                    f"or drop {key}",
                    key=key,
                )


@section
class PtxConfig:
    """Texts that are trained beside the answers."""

    ptx_data: SourceList = ()
    """Conversations or texts to train on in every minibatch, each PATH, PATH:FORMAT or PATH=PROPORTION, read and
    rendered as sft does it."""
    ptx_share: Annotated[Number, Gt(0), Lt(1)] = 0.1
    """Their share of the trained tokens of a step; at least one of them is in every minibatch."""

    def __post_init__(self) -> None:
        if self.ptx_share != 0.1 and not self.ptx_data:
            raise ConfigError(
                "ptx_share is given, but there is no ptx_data; give it, or drop ptx_share", key="ptx_share"
            )
