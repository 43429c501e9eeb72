"""The config of each command that trains: the sections that all of them share, and those of its algorithm."""

from __future__ import annotations

from dataclasses import field, replace
from typing import TYPE_CHECKING, ClassVar

from espalier.algorithms.bco import BCO
from espalier.algorithms.cpo import CPO
from espalier.algorithms.dapo import DAPO
from espalier.algorithms.dpo import DPO
from espalier.algorithms.dr_grpo import DrGRPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.gspo import GSPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.orpo import ORPO
from espalier.algorithms.ppo import PPO
from espalier.algorithms.prm import PRM
from espalier.algorithms.raft import RAFT
from espalier.algorithms.reinforce import Reinforce
from espalier.algorithms.reinforce_pp import ReinforcePP
from espalier.algorithms.reward import Reward
from espalier.algorithms.rloo import RLOO
from espalier.algorithms.sft import SFT
from espalier.algorithms.simpo import SimPO
from espalier.assembly.online_runs import PolicyOptim, SingleAnswers, check_online, rate, unused
from espalier.config.critic_section import CriticConfig, PtxConfig
from espalier.config.fields import Positive, infos, section
from espalier.config.rollout_sections import ConversationsConfig, RewardsConfig, RolloutConfig
from espalier.config.sections import (
    DataConfig,
    JudgeConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    PreferenceConfig,
    ReferenceConfig,
    StepLabelsConfig,
    TurnsConfig,
)
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.algorithms.traits import Algorithm


@section
class RunConfig:
    """A run. `RUNS` has a class for each command, with its algorithm as `algorithm`.

    A command shows its own `sections`, in this order; those that it lacks are at their defaults.
    """

    model: ModelConfig
    data: DataConfig
    loop: LoopConfig
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    labels: StepLabelsConfig = field(default_factory=StepLabelsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    conversations: ConversationsConfig = field(default_factory=ConversationsConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)

    command: ClassVar[str]
    about: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    refused: ClassVar[tuple[str, ...]]
    """Keys that its sections share with other commands, and that it has no use for."""

    if TYPE_CHECKING:

        @property
        def algorithm(self) -> Algorithm: ...

    def __post_init__(self) -> None:
        if not self.optim.lr:
            object.__setattr__(self, "optim", replace(self.optim, lr=rate(self.model)))
        held_out = bool(self.data.eval_data) or self.data.eval_fraction > 0
        if self.loop.eval_every and not held_out:
            raise ConfigError("eval_every is given, but nothing is held out; give eval_data or eval_fraction")
        if self.data.alpaca_prompt and self.data.format not in ("auto", "alpaca"):
            raise ConfigError(f"alpaca_prompt is on, but format is {self.data.format}; it applies to Alpaca rows only")
        check_judgements(self)
        for key in given(self):
            if key in self.refused:
                raise ConfigError(f"{key} is given, but `espalier {self.command}` has no use for it; drop it", key=key)
        if self.data.eval_fraction and self.preference.flip:
            raise ConfigError("flip would flip held-out judgements, too; hold files out with eval_data")
        check_reference(self)
        check_online(self, given(self))
        if self.judge.eval_only and held_out:
            raise ConfigError("eval_only judges all of data, and nothing is trained; drop eval_data and eval_fraction")
        if self.judge.eval_only and self.loop.resume:
            raise ConfigError("eval_only is on, and there is nothing to resume; drop resume")
        for name in infos(type(self)):
            if name not in self.sections and given(self, name):
                raise ConfigError(f"{name} is given, but `espalier {self.command}` has no such section; drop it")


# ---------------------------------------------------------------------------------- learning rates that papers start at


@section
class HeadOptim(OptimConfig):
    """Optimizer and learning rate."""

    lr: Positive = 1e-5
    """Peak learning rate."""


@section
class PreferenceOptim(OptimConfig):
    """Optimizer and learning rate."""

    lr: Positive = 1e-6
    """Peak learning rate."""


@section
class LikelihoodOptim(OptimConfig):
    """Optimizer and learning rate."""

    lr: Positive = 8e-6
    """Peak learning rate."""


# ------------------------------------------------------------------------------------------------------------- commands

SFT_ONLY = ("replay", "replay_fraction", "alpaca_prompt")
"""Keys about text and instructions that other commands have no use for."""


def _run(
    command: str,
    about: str,
    algorithm: type[Algorithm],
    optim: type[OptimConfig],
    *,
    sections: tuple[str, ...] = (),
    refused: tuple[str, ...] = SFT_ONLY,
    rollout: type[RolloutConfig] = RolloutConfig,
) -> type[RunConfig]:
    """The config class of one command; `sections` are those beside model, data, loop, optim and algorithm."""
    body = {
        "__doc__": about,
        "__module__": __name__,
        "__annotations__": {"optim": optim, "rollout": rollout, "algorithm": algorithm},
        "optim": field(default_factory=optim),
        "rollout": field(default_factory=rollout),
        "algorithm": field(default_factory=algorithm),
        "command": command,
        "about": about,
        "sections": ("model", "data", "turns", "loop", "optim", "algorithm", *sections),
        "refused": refused,
    }
    return section(type(f"{algorithm.__name__}Run", (RunConfig,), body))


ONLINE: dict[str, tuple[str, type[Algorithm]]] = {
    "grpo": ("Learn from graded answers, each compared with the others to its prompt.", GRPO),
    "dr-grpo": ("GRPO without its divisions by length and deviation.", DrGRPO),
    "rloo": ("REINFORCE with the mean of the other answers to a prompt as baseline.", RLOO),
    "dapo": ("GRPO over tokens, clipped further above, with prompts that teach nothing replaced.", DAPO),
    "gspo": ("GRPO with the ratio of whole answers.", GSPO),
    "ppo": ("Learn from graded answers, token by token, with a critic.", PPO),
    "reinforce": ("Learn from graded answers, each compared with a moving or a step's mean score.", Reinforce),
    "reinforce-pp": ("REINFORCE with advantages whitened over the step, and the KL in the rewards.", ReinforcePP),
    "raft": ("Fine-tune on the best of the model's own answers (rejection sampling).", RAFT),
}
BESIDE: dict[type[Algorithm], tuple[str, ...]] = {RAFT: ("conversations",), PPO: ("reference", "critic", "ptx")}
"""Sections of commands that answer tasks, beside rollouts and rewards; of the others it is the reference."""
RUNS: dict[str, type[RunConfig]] = {
    run.command: run
    for run in (
        _run("sft", "Fine-tune a model on instruction data.", SFT, OptimConfig, refused=()),
        _run(
            "reward",
            "Train a reward model on ranked or scored answers, and judge it.",
            Reward,
            HeadOptim,
            sections=("preference", "judge"),
            refused=(*SFT_ONLY, "outcome_model"),
        ),
        _run("prm", "Train a process reward model on labelled steps.", PRM, HeadOptim, sections=("labels", "judge")),
        _run(
            "dpo",
            "Learn from pairs and ranked lists against a reference.",
            DPO,
            PreferenceOptim,
            sections=("preference", "reference"),
        ),
        _run(
            "simpo",
            "Learn from pairs by mean log-probabilities, without a reference.",
            SimPO,
            PreferenceOptim,
            sections=("preference",),
        ),
        _run(
            "orpo",
            "Learn from pairs by odds ratios beside likelihood, without a reference.",
            ORPO,
            LikelihoodOptim,
            sections=("preference",),
        ),
        _run(
            "cpo",
            "Learn from pairs beside likelihood, without a reference.",
            CPO,
            PreferenceOptim,
            sections=("preference",),
        ),
        _run(
            "kto",
            "Learn from answers that are labelled good or bad.",
            KTO,
            PreferenceOptim,
            sections=("preference", "reference"),
            refused=(*SFT_ONLY, "max_pairs"),
        ),
        _run(
            "bco",
            "Learn from good and bad answers by a binary classifier.",
            BCO,
            PreferenceOptim,
            sections=("preference", "reference"),
            refused=(*SFT_ONLY, "max_pairs"),
        ),
        *(
            _run(
                command,
                about,
                algorithm,
                PolicyOptim,
                sections=("rollout", "rewards", *BESIDE.get(algorithm, ("reference",))),
                refused=unused(algorithm),
                rollout=SingleAnswers if algorithm in (PPO, Reinforce, ReinforcePP) else RolloutConfig,
            )
            for command, (about, algorithm) in ONLINE.items()
        ),
    )
}
"""The config class of each command that trains."""


# ------------------------------------------------------------------------------------- combinations that are refused


def check_judgements(config: RunConfig) -> None:
    """Raise ConfigError for a choice among judgements that no loss of the algorithm would see."""
    traits, preference = config.algorithm.traits, config.preference
    chosen = {"min_gap": preference.min_gap, "max_pairs": preference.max_pairs, "flip": preference.flip}
    if traits.wants == "grades":
        why = "pointwise learns from the grades of answers, one by one"
        ignored = {
            **chosen,
            "judged_by": preference.judged_by != "auto",
            "score_weights": bool(preference.score_weights),
        }
    elif traits.orders:
        why = "plackett_luce learns from whole orders"
        ignored = chosen
    elif traits.wants == "labels":
        why = f"{config.command} learns from answers that are good or bad, one by one"
        ignored = {"max_pairs": preference.max_pairs}
    else:
        return
    for key, value in ignored.items():
        if value:
            raise ConfigError(f"{key} is given, but {why}, which it does not change; drop it", key=key)


def check_reference(config: RunConfig) -> None:
    """Raise ConfigError if the algorithm cannot use the reference that the config names."""
    reference, traits = config.reference, config.algorithm.traits
    precomputed, other = reference.reference == "precomputed", bool(reference.reference_model)
    if "ref_logprobs" not in traits.needs:
        for key, value in (("reference_model", other), ("reference", precomputed)):
            if value:
                raise ConfigError(f"{key} is given, but {config.command} as set uses no reference; drop {key}", key=key)
    if precomputed and traits.sync_every:
        raise ConfigError(
            f"reference is precomputed, but the reference moves every {traits.sync_every} steps, and what was computed "
            "before the first step would be wrong after that; set reference: memory, or let it stay where it is",
            key="reference",
        )
    if precomputed and traits.mates:
        raise ConfigError(
            f"reference is precomputed, but {config.command} builds samples across the groups of each step, which are "
            "in no table; set reference: memory",
            key="reference",
        )
    if other and traits.sync_every:
        raise ConfigError(
            f"reference_model is given, but the reference moves towards the policy every {traits.sync_every} steps, so "
            "it must be the policy as it starts; drop reference_model, or let the reference stay where it is",
            key="reference_model",
        )


# -------------------------------------------------------------------------------------------------- what a user gave


def given(config: RunConfig, *sections: str) -> list[str]:
    """Keys of these sections (of all that the command has, if none is named) that are not at their defaults."""
    keys = []
    for name in sections or config.sections:
        part = getattr(config, name)
        for key, info in infos(type(part)).items():
            if not info.is_required() and getattr(part, key) != info.get_default(call_default_factory=True):
                keys.append(key)
    return keys


READ_IN_JUDGING = {
    *("out", "seed", "tokens_per_microbatch", "deterministic", "overwrite", "compile"),
    *("objective", "dimensions", "pointwise_coef", "grade_low", "grade_high"),
}
"""Keys of the loop and of algorithms that matter if a scoring model is judged and nothing is trained."""


def unread_in_judging(config: RunConfig) -> list[str]:
    """Keys that are given, and that matter for training alone; none if something is trained."""
    if not config.judge.eval_only:
        return []
    return [key for key in given(config, "optim", "loop", "algorithm") if key not in READ_IN_JUDGING]
