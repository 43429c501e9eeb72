"""What runs that learn from the policy's own answers have of their own: rates to start at, and what is refused."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from espalier.config.critic_section import OWN, SHARED
from espalier.config.fields import Count, Fraction, NotNegative, section
from espalier.config.rollout_sections import RolloutConfig
from espalier.config.sections import ModelConfig, OptimConfig
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.algorithms.traits import Algorithm
    from espalier.assembly.runs import RunConfig

FULL_LR, LORA_LR = 1e-6, 1e-5
CRITIC_LR, CRITIC_LORA_LR = 5e-6, 5e-5
CRITICS = (
    "policy (its weights and a head that starts at 0; under LoRA an adapter of its own, of a continued "
    "adapter a copy), shared (a head on the policy, under LoRA beside its adapter), or the folder of a reward model "
    "(its weights and head; under LoRA a new adapter on it)"
)

OFFLINE_ONLY = ("alpaca_prompt", "replay", "replay_fraction", "samples_per_step", "tokens_per_step", "keep_wrong")
"""Keys about rows that are trained as they are."""


@section
class PolicyOptim(OptimConfig):
    """Optimizer and learning rate."""

    lr: NotNegative = 0.0
    """Peak learning rate; 0 takes 1e-6, and 1e-5 for LoRA."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "constant"
    warmup: Fraction = 0.0


@section
class SingleAnswers(RolloutConfig):
    """How answers to tasks are drawn."""

    group_size: Count = 1


def unused(algorithm: type[Algorithm]) -> tuple[str, ...]:
    """Keys of shared sections that a command has no use for."""
    online = algorithm().traits.online
    refills = online is not None and online.refills
    return OFFLINE_ONLY if refills else (*OFFLINE_ONLY, "max_waves")


def rate(model: ModelConfig) -> float:
    """The learning rate of a run that names none."""
    return LORA_LR if model.lora_rank or model.adapter else FULL_LR


def check_online(config: RunConfig, changed: Collection[str]) -> None:
    """Raise ConfigError for rollouts that the algorithm cannot learn from. `changed` are the keys that are not at their
    defaults."""
    online, rollout = config.algorithm.traits.online, config.rollout
    if online is None:
        return
    if rollout.group_size < online.least_group:
        raise ConfigError(
            f"group_size: got {rollout.group_size}, but {config.command} compares answers to one prompt with each "
            f"other; expected at least {online.least_group}",
            key="group_size",
        )
    answers = rollout.prompts_per_step * rollout.group_size
    if 0 < answers < online.least_step:
        raise ConfigError(
            f"prompts_per_step: got {rollout.prompts_per_step} with group_size {rollout.group_size}, but "
            f"{config.command} as set compares the answers of a step with each other; expected at least "
            f"{online.least_step} answers",
            key="prompts_per_step",
        )
    if rollout.temperature == 0:
        raise ConfigError(
            "temperature: got 0, but greedy answers to a prompt are all the same, and are no draws from the policy; "
            "expected more than 0, such as 1",
            key="temperature",
        )
    if rollout.repetition_penalty != 1:
        raise ConfigError(
            f"repetition_penalty: got {rollout.repetition_penalty:g}, but what it draws from is not the policy, so "
            "that log-probabilities of the two cannot be compared; expected 1 in training",
            key="repetition_penalty",
        )
    if "sft_coef" in changed and not config.conversations.sft_data:
        raise ConfigError(
            "sft_coef is given, but there is no sft_data whose loss it would weigh; give sft_data, or drop it",
            key="sft_coef",
        )
    if rollout.eval_samples and not (config.data.eval_data or config.data.eval_fraction):
        raise ConfigError(
            "eval_samples is given, but nothing is held out; give eval_data or eval_fraction, or drop it",
            key="eval_samples",
        )
    check_critic(config, changed)
    if config.reference.reference == "precomputed":
        raise ConfigError(
            "reference is precomputed, but answers are drawn in every step and are in no table; set reference: memory",
            key="reference",
        )


def critic_optim(config: RunConfig) -> OptimConfig:
    """How a critic of its own is optimised: as the policy, at a rate of its own."""
    lora = config.model.lora_rank or config.model.adapter
    return replace(config.optim, lr=config.critic.critic_lr or (CRITIC_LORA_LR if lora else CRITIC_LR))


def check_critic(config: RunConfig, changed: Collection[str]) -> None:
    """Raise ConfigError for critics that do not exist, and for settings that this one does not read."""
    critic, model = config.critic, config.model
    if "values" not in config.algorithm.traits.needs:
        return
    if critic.critic not in (SHARED, OWN) and model.adapter:
        raise ConfigError(
            f"critic: got {critic.critic} with adapter, which belongs to the policy's base, not to a reward model. "
            f"Critics are: {CRITICS}",
            key="critic",
        )
    if "value_coef" in changed and critic.critic != SHARED:
        raise ConfigError(
            "value_coef is given, but the critic has weights and an optimizer of its own; give critic: shared, or drop "
            "value_coef",
            key="value_coef",
        )
    if "ptx_coef" in changed and not config.ptx.ptx_data:
        raise ConfigError(
            "ptx_coef is given, but there is no ptx_data whose loss it would weigh; give ptx_data, or drop it",
            key="ptx_coef",
        )
    if config.loop.steps and critic.critic_warmup >= config.loop.steps:
        raise ConfigError(
            f"critic_warmup: got {critic.critic_warmup:,} of {config.loop.steps:,} steps, in which the policy would "
            "never be trained; expected fewer",
            key="critic_warmup",
        )
