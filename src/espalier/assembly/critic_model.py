"""The model that a critic of its own is built from."""

from __future__ import annotations

from dataclasses import replace

import torch

from espalier.assembly.model import HeadSpec, Model, build_model
from espalier.assembly.runs import RunConfig
from espalier.config.critic_section import OWN, SHARED
from espalier.errors import ConfigError
from espalier.models.load import Loaded
from espalier.models.reward_folder import reward_model_folder


def build_critic_model(config: RunConfig, policy: Loaded, device: torch.device) -> Model | None:
    """The critic as a model of its own, ready to be trained; None if the algorithm has none, or it shares the policy's.

    Raises ConfigError for a folder that holds no reward model, or one of another vocabulary; ModelError as
    `build_model`.
    """
    choice = config.critic.critic
    if "values" not in config.algorithm.traits.needs or choice == SHARED:
        return None
    if choice == OWN:
        return build_model(config.model, device, seed=config.loop.seed, head=HeadSpec((), "response", says="values"))
    settings = replace(config.model, model=str(reward_model_folder(choice)))
    head = HeadSpec((), "response", trained=False, says="values")
    model = build_model(settings, device, seed=config.loop.seed, head=head)
    ours, theirs = policy.tokenizer.get_vocab(), model.loaded.tokenizer.get_vocab()
    if ours != theirs:
        raise ConfigError(
            f"critic: {choice} has a vocabulary of {len(theirs):,} tokens that is not the policy's of {len(ours):,}; "
            "expected a reward model with the policy's tokenizer, or critic: policy",
            key="critic",
        )
    return model
