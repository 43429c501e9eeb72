"""The model that a critic of its own is built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from espalier.assembly.model import HeadSpec, Model, build_model
from espalier.assembly.online_runs import CRITICS
from espalier.assembly.reward_models import other_tokens
from espalier.assembly.runs import RunConfig
from espalier.config.critic_section import OWN, SHARED
from espalier.config.fields import named_weights
from espalier.errors import ConfigError, ModelError
from espalier.models.load import Loaded
from espalier.models.reward_folder import read_reward_folder


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
    folder, weights = _reward_model(config)
    settings = replace(config.model, model=str(folder))
    head = HeadSpec((), "response", trained=False, says="values", weights=weights)
    model = build_model(settings, device, seed=config.loop.seed, head=head)
    # Its template does not matter: it reads ids.
    fault = other_tokens(policy.tokenizer, model.loaded.tokenizer)
    if fault:
        raise ConfigError(
            f"critic: {choice} {fault}; expected a reward model with the policy's tokenizer, or critic: policy",
            key="critic",
        )
    return model


def _reward_model(config: RunConfig) -> tuple[Path, tuple[float, ...]]:
    """The folder of the reward model that the critic starts from, and what each of its dimensions counts."""
    choice = config.critic.critic
    try:
        reward_model = read_reward_folder(choice, trust_remote_code=config.model.trust_remote_code)
    except ModelError as error:
        raise ConfigError(f"critic: {error}. Critics are: {CRITICS}", key="critic") from error
    if len(reward_model.dimensions) == 1:
        return reward_model.folder, (1.0,)
    weights = named_weights(config.rewards.reward_dimensions, "reward_dimensions", bare=False)
    if not weights.keys() & set(reward_model.dimensions):
        raise ConfigError(
            f"critic: {choice} has the dimensions {', '.join(reward_model.dimensions)}, and nothing says what they "
            f"count; give --reward-dimensions DIMENSION=WEIGHT, such as {reward_model.dimensions[0]}=1",
            key="critic",
        )
    return reward_model.folder, tuple(weights.get(name, 0.0) for name in reward_model.dimensions)
